"""Print the lowest versions that pyproject.toml allows, as constraints for an installer."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
extras = [name for names in project["optional-dependencies"].values() for name in names]
for name in sorted({*project["dependencies"], *extras}):
    if found := re.fullmatch(r"([\w-]+)(\[\w+\])?>=([\d.]+)", name):
        print(f"{found[1]}=={found[3]}")
