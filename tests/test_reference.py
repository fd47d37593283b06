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
    page = "\n".join(api.klass("ImageSet", api.whole(node, tree), {}))
    assert "ImageSet.subset" in page and "Some of the images." in page
    assert page.count("### ImageSet.shown") == 1 and "Its own." in page
    assert "Inherits from `Base`." in page and "_Looks" not in page
    assert "Stands where it is written." not in page
    assert len(node.body) == 2 and len(node.bases) == 2, "the tree is as it was"
