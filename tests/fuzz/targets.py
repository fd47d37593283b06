"""All targets by their names."""
from .images import Images
from .inputs import ClassLists, CommandLine, Config, Labels
from .state import Checkpoints, Rows, SavedMethods

KINDS = (Images, SavedMethods, Checkpoints, Rows, ClassLists, Labels, CommandLine, Config)
TARGETS = {target.name: target for target in KINDS}
