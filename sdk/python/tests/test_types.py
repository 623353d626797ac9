"""The types hold, strictly: of the package, its examples and these tests."""

from __future__ import annotations

import subprocess
import sys
import unittest

import kit


class Types(unittest.TestCase):
    def test_mypy_finds_nothing(self) -> None:
        command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(kit.ROOT / "target/mypy")]
        found = subprocess.run(command, cwd=kit.ROOT / "sdk/python", capture_output=True, text=True)
        self.assertEqual((found.returncode, found.stdout), (0, ""), found.stderr)


if __name__ == "__main__":
    unittest.main()
