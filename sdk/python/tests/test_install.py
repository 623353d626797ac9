"""The package installs from the checkout by pip, and works from where it was installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import kit


class Installed(kit.GatewayTest):
    def test_pip_installs_it_from_the_checkout(self) -> None:
        folder = self.folder()
        # A copy, since setuptools builds in the folder that it is given.
        checkout = folder / "python"
        source = kit.ROOT / "sdk/python"
        shutil.copytree(
            source, checkout, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".mypy_cache")
        )
        target = folder / "installed"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(target), str(checkout)], check=True, timeout=10 * kit.PATIENCE)
        installed = {path.name for path in (target / "onlyonce").iterdir()}
        of_checkout = {path.name for path in (source / "src/onlyonce").iterdir()}
        self.assertEqual(installed - {"__pycache__"}, of_checkout - {"__pycache__"})
        self.assertIn("py.typed", installed)
        program = (
            "import onlyonce; print(onlyonce.__file__);"
            f"print('got', onlyonce.Client('{self.gateway.control}').once(key='{self.key()}')(lambda: 5)())"
        )
        environment = {**os.environ, "PYTHONPATH": str(target)}
        with kit.running(sys.executable, "-c", program, env=environment, cwd=folder) as process:
            process.wait_for("got 5")
        self.assertTrue(Path(process.lines[0]).is_relative_to(target), process.lines)


if __name__ == "__main__":
    unittest.main()
