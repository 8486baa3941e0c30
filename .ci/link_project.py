"""Link this folder into the running environment, as an editable install does, and write its commands.

A build backend would have to be fetched for that (and into an isolated environment, past the lock file). All that is
needed is a path file, the package's metadata and one small script per entry of `[project.scripts]`.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = """#!{python}
import sys
from {module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
"""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = Path(sysconfig.get_paths()["purelib"])
    name = project["name"].replace("-", "_")
    for old in [*packages.glob(f"__editable__.{name}*"), *packages.glob(f"{name}-*.dist-info")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (packages / f"{name}.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    info = packages / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
        f"Summary: {project['description']}\nRequires-Python: {project['requires-python']}\n",
        encoding="utf-8",
    )
    scripts = project["scripts"]
    entries = "".join(f"{command} = {target}\n" for command, target in scripts.items())
    (info / "entry_points.txt").write_text(f"[console_scripts]\n{entries}", encoding="utf-8")
    (info / "INSTALLER").write_text("setup\n", encoding="utf-8")
    (info / "RECORD").write_text("", encoding="utf-8")
    for command, target in scripts.items():
        module, function = target.split(":")
        script = Path(sys.prefix) / "bin" / command
        script.write_text(COMMAND.format(python=sys.executable, module=module, function=function), encoding="utf-8")
        script.chmod(0o755)


if __name__ == "__main__":
    main()
