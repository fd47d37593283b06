"""All targets by their names."""
from .images import Images
from .inputs import ClassLists, CommandLine, Config, Labels
from .state import Checkpoints, Rows, SavedIndexes, SavedMethods

KINDS = (
    Images, SavedMethods, SavedIndexes, Checkpoints, Rows,
    ClassLists, Labels, CommandLine, Config,
)
TARGETS = {target.name: target for target in KINDS}
