"""List the configs that ship with mmx, by the short names that --config takes."""

from mmx.core.config import list_configs

HELP = "list the configs"
EXAMPLES = """\
examples:
  mmx configs
  mmx train --config muse/openmoji32:tiny --print_config
"""


def add_arguments(parser):
    del parser


def run(args) -> int:
    del args
    names = list_configs()
    width = max(map(len, names), default=0)
    for name, purpose in names.items():
        print(f"{name.ljust(width)}  {purpose}")
    print("\nEach takes :tiny, a run of seconds: muse/openmoji32:tiny")
    return 0
