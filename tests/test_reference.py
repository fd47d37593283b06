"""The reference shows a class with the methods that it is put together from."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import api  # noqa: E402

MODULE = '''
class _Looks:
    def subset(self, indices):
        """Some of the images."""
    def shown(self):
        """Another one."""

class Base:
    def kept(self):
        """Stands where it is written."""

class ImageSet(_Looks, Base):
    """Images."""
    def shown(self):
        """Its own."""
'''


def test_methods_of_private_parts_are_shown_where_they_arrive():
    tree = ast.parse(MODULE)
    node = tree.body[-1]
    shown = api.whole(node, tree)
    methods = {item.name: ast.get_docstring(item) for item in shown.body[1:]}
    assert methods == {"shown": "Its own.", "subset": "Some of the images."}
    assert [base.id for base in shown.bases] == ["Base"]
    assert len(node.body) == 2 and len(node.bases) == 2, "the tree is as it was"
