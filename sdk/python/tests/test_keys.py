"""Keys that survive a crash: the folder, shared with `onlyonce call`, and the rules of the window."""

from __future__ import annotations

import json
import os
import subprocess
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, List
from unittest import mock

import blake3

import kit
import onlyonce
from onlyonce import ActionKeys, KeyFolder
from onlyonce import _blake3 as ours
from onlyonce._folder import Entry

URL = "http://127.0.0.1:9/v1/charges"


class Hashes(unittest.TestCase):
    def test_plain_python_hashes_as_the_reference_does(self) -> None:
        for length in (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096, 5000, 31744):
            data = bytes(n % 251 for n in range(length))
            self.assertEqual(ours._plain_hash(data), blake3.blake3(data).digest(), length)
            derived = blake3.blake3(data, derive_key_context="a context").digest()
            self.assertEqual(ours._plain_derived("a context", data), derived, length)


class Shared(kit.GatewayTest):
    """A folder that Python shares with `onlyonce call`."""

    def setUp(self) -> None:
        self.sandbox = kit.Sandbox()
        self.addCleanup(self.sandbox.close)
        self.keys_folder = self.folder()
        self.url = f"{self.sandbox.url}/v1/echo"

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [kit.BINARY, "call", "--keys", str(self.keys_folder), "-v", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=kit.PATIENCE)

    def sent(self) -> List[Any]:
        return [entry["key"] for entry in self.sandbox.ledger()]

    def test_a_key_of_onlyonce_call_is_used_by_python(self) -> None:
        action = "order 17: \u00e9/charge"
        self.assertEqual(self.call("--action", action, "-d", "amount=1", self.url).returncode, 0)
        keys = ActionKeys(self.keys_folder)
        key = keys.call(action).key("POST", self.url, b"amount=1")
        self.assertEqual(self.sent(), [key])
        note = keys.folder.look(action)
        assert note is not None and note.note is not None
        self.assertEqual(note.note.answered, 200)
        with self.assertRaises(onlyonce.ActionReused):
            keys.call(action).key("POST", self.url, b"amount=2")

    def test_a_key_of_python_is_used_by_onlyonce_call(self) -> None:
        keys = ActionKeys(self.keys_folder)
        call = keys.call("order-18/charge")
        key = call.key("POST", self.url, b"amount=1")
        # The end of the window is noted as `onlyonce call` reads it.
        end = datetime.now(timezone.utc) + timedelta(hours=3)
        call.answered(200, {"onlyonce-expires": end.isoformat(timespec="seconds").replace("+00:00", "Z")})
        answer = self.call("--action", "order-18/charge", "-d", "amount=1", self.url)
        self.assertEqual((answer.returncode, self.sent()), (0, [key]), answer.stderr)
        self.assertIn(f"kept key {key}", answer.stderr)
        other = self.call("--action", "order-18/charge", "-d", "amount=2", self.url)
        self.assertEqual((other.returncode, len(self.sent())), (7, 1), other.stderr)

    def test_onlyonce_call_keeps_to_the_window_that_python_noted(self) -> None:
        call = ActionKeys(self.keys_folder).call("order-19/charge")
        call.key("POST", self.url, b"amount=1")
        end = datetime.now(timezone.utc)
        call.answered(200, {"onlyonce-expires": end.isoformat(timespec="seconds").replace("+00:00", "Z")})
        answer = self.call("--action", "order-19/charge", "-d", "amount=1", self.url)
        self.assertEqual((answer.returncode, self.sent()), (6, []), answer.stderr)

    def test_what_one_forgets_the_other_has_forgotten(self) -> None:
        keys = ActionKeys(self.keys_folder)
        first = keys.call("a").key("POST", self.url)
        self.assertEqual(self.call("--forget", "--action", "a").returncode, 0)
        self.assertNotEqual(keys.call("a").key("POST", self.url), first)
        self.assertTrue(keys.forget("a"))
        self.assertFalse(keys.forget("a"))
        self.assertEqual(self.call("--forget", "--action", "a").returncode, 1)


class Folder(kit.GatewayTest):
    @classmethod
    def setUpClass(cls) -> None:
        """No gateway is needed."""

    def setUp(self) -> None:
        self.keys_folder = self.folder() / "state" / "keys"
        self.keys = ActionKeys(self.keys_folder)

    def test_an_action_has_one_key_whoever_asks(self) -> None:
        for others in (ActionKeys(self.keys_folder), self.keys):
            with ThreadPoolExecutor(8) as pool:
                found = set(pool.map(lambda _: others.call("a").key("POST", URL), range(32)))
            self.assertEqual(found, {self.keys.call("a").key("POST", URL)})
        self.assertNotEqual(self.keys.call("b").key("POST", URL), found.pop())

    def test_processes_that_race_for_an_action_get_one_key(self) -> None:
        program = (
            "import sys, onlyonce; sys.stdin.readline();"
            f"print('key', onlyonce.ActionKeys(r'{self.keys_folder}').call('a').key('POST', '{URL}'), flush=True)"
        )
        children = [
            subprocess.Popen(
                kit.python("-c", program),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=kit.environment(),
            )
            for _ in range(6)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = {child.communicate(timeout=kit.PATIENCE)[0] for child in children}
        self.assertEqual(said, {f"key {self.keys.call('a').key('POST', URL)}\n"})

    def test_the_key_is_on_disk_before_it_is_known(self) -> None:
        done: List[str] = []
        fsync, link = os.fsync, os.link

        def synced(handle: int) -> None:
            done.append("sync folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "sync file")
            fsync(handle)

        def linked(one: Any, other: Any) -> None:
            done.append("link")
            link(one, other)

        with mock.patch("os.fsync", synced), mock.patch("os.link", linked):
            self.keys.call("a").key("POST", URL)
            self.assertEqual(done, ["sync file", "link", "sync folder"])
            done.clear()
            # Who made it may not have come to sync the folder.
            self.keys.call("a").key("POST", URL)
            self.assertEqual(done, ["sync folder"])

    def test_a_damaged_key_is_an_error_and_never_a_new_key(self) -> None:
        self.keys.call("a").key("POST", URL)
        file = self.keys.folder.key_file("a")
        whole = file.read_bytes()
        for at in range(len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with self.assertRaises(onlyonce.KeysError, msg=f"byte {at}"):
                self.keys.call("a")
        for damage in (b"", b"null\n", whole[:-20], whole + whole):
            file.write_bytes(damage)
            with self.assertRaises(onlyonce.KeysError) as caught:
                self.keys.call("a")
        self.assertIn("A new key could run the action twice", caught.exception.means)
        self.keys.call("b").key("POST", URL)

    def test_what_is_no_file_in_a_keys_place_is_an_error_at_once(self) -> None:
        file = self.keys.folder.key_file("a")
        makes: List[Callable[[], None]] = [
            lambda: file.symlink_to("/nonexistent/place"),
            lambda: os.mkfifo(file),
            file.mkdir,
        ]
        for make in makes:
            make()
            with self.assertRaises(onlyonce.KeysError) as caught:
                self.keys.call("a").key("POST", URL)
            self.assertIn("is damaged", caught.exception.happened)
            file.rmdir() if file.is_dir() else file.unlink()
        self.keys.call("a").key("POST", URL)

    def test_a_damaged_note_is_an_error_too(self) -> None:
        call = self.keys.call("a")
        call.key("POST", URL)
        call.answered(200, {})
        (note,) = self.keys_folder.glob("*.note")
        note.write_bytes(note.read_bytes().replace(b"200", b"500"))
        with self.assertRaises(onlyonce.KeysError):
            self.keys.call("a")

    def test_a_newer_format_is_refused_and_says_so(self) -> None:
        self.keys.call("a").key("POST", URL)
        file = self.keys.folder.key_file("a")
        file.write_text(file.read_text().replace('"format":1', '"format":2'))
        with self.assertRaisesRegex(onlyonce.KeysError, "newer version"):
            self.keys.call("a")

    def test_a_key_of_another_action_is_damage(self) -> None:
        self.keys.call("a").key("POST", URL)
        self.keys.folder.key_file("a").rename(self.keys.folder.key_file("b"))
        with self.assertRaisesRegex(onlyonce.KeysError, "another action"):
            self.keys.call("b")

    def test_what_cannot_be_kept_sends_nothing(self) -> None:
        file = self.folder() / "file"
        file.write_text("")
        with self.assertRaisesRegex(onlyonce.KeysError, "sent nothing"):
            ActionKeys(file)

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        with mock.patch("os.fsync", full), self.assertRaisesRegex(onlyonce.KeysError, "No space left"):
            self.keys.call("a").key("POST", URL)
        self.assertEqual([path for path in self.keys_folder.rglob("*") if path.is_file()], [])

    def test_it_is_for_its_owner_alone(self) -> None:
        self.keys.call("a").key("POST", URL)
        modes = {path.stat().st_mode & 0o077 for path in [self.keys_folder, *self.keys_folder.rglob("*")]}
        self.assertEqual(modes, {0})

    def test_what_a_crash_left_is_removed_after_an_hour(self) -> None:
        left, fresh = self.keys_folder / "new/left", self.keys_folder / "new/fresh"
        for file in (left, fresh):
            file.write_text("")
        os.utime(left, (time.time() - 7200,) * 2)
        KeyFolder(self.keys_folder)
        self.assertEqual([left.exists(), fresh.exists()], [False, True])

    def test_a_name_that_names_nothing_is_refused(self) -> None:
        for action in ("", "x" * 1025, "a\nb", "a\u0085b"):
            with self.assertRaises(ValueError):
                self.keys.call(action)
        self.keys.call("x" * 1024).key("POST", URL)

    def test_another_method_url_or_body_is_another_request(self) -> None:
        self.keys.call("a").key("POST", URL + "?x=1#here", b"body")
        self.keys.call("a").key("POST", URL + "?x=1", b"body")
        for method, url, body in (
            ("PUT", URL + "?x=1", b"body"),
            ("POST", URL, b"body"),
            ("POST", URL + "?x=1b", b"ody"),
            ("POST", URL + "?x=1", b"bodz"),
        ):
            with self.assertRaises(onlyonce.ActionReused) as caught:
                self.keys.call("a").key(method, url, body)
        self.assertIn("This call sent nothing", caught.exception.means)

    def test_where_keys_are_kept_unless_said(self) -> None:
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(self.keys_folder)}):
            self.assertEqual(ActionKeys().folder.path, self.keys_folder / "onlyonce/keys")
        with mock.patch.dict(os.environ, {"ONLYONCE_KEYS": str(self.keys_folder / "x")}):
            self.assertEqual(ActionKeys().folder.path, self.keys_folder / "x")


class Window(kit.GatewayTest):
    @classmethod
    def setUpClass(cls) -> None:
        """No gateway is needed."""

    MADE = 1_800_000_000.0
    HOUR = 3600.0

    def setUp(self) -> None:
        self.now = self.MADE
        self.keys_folder = self.folder()

    def ask(self, **options: Any) -> onlyonce.ActionCall:
        keys = ActionKeys(self.keys_folder, clock=lambda: self.now, **options)
        call = keys.call("a")
        call.key("POST", URL)
        return call

    def test_one_ms_before_at_and_after_the_end_less_the_margin(self) -> None:
        self.ask()
        last = self.MADE + 24 * self.HOUR - 60
        self.now = last - 0.001
        self.ask()
        for now in (last, last + 0.001, last + 30 * 24 * self.HOUR):
            self.now = now
            with self.assertRaises(onlyonce.WindowOver) as caught:
                self.ask()
        self.assertEqual(caught.exception.ended_at.timestamp(), self.MADE + 24 * self.HOUR)
        self.assertIn("It may have run", caught.exception.means)

    def test_no_attempt_of_a_call_comes_after_the_window_either(self) -> None:
        call = self.ask()
        self.now += 24 * self.HOUR
        with self.assertRaises(onlyonce.WindowOver):
            call.key("POST", URL)

    def test_the_servers_word_counts_for_more(self) -> None:
        end = datetime.fromtimestamp(self.MADE + self.HOUR, timezone.utc)
        self.ask().answered(200, {"onlyonce-expires": end.isoformat().replace("+00:00", "Z")})
        self.now += self.HOUR - 61
        self.ask()
        self.now += 2
        with self.assertRaisesRegex(onlyonce.WindowOver, "The server's last answer was 200"):
            self.ask()

    def test_a_short_window_keeps_nine_tenths(self) -> None:
        self.ask(window="1m")
        self.now += 53
        self.ask(window="1m")
        self.now += 1
        with self.assertRaises(onlyonce.WindowOver):
            self.ask(window="1m")

    def test_a_window_of_nothing_sends_nothing(self) -> None:
        with self.assertRaisesRegex(onlyonce.WindowOver, "This call sent nothing. Give the keys a window"):
            self.ask(window=0)

    def test_a_clock_that_went_back_sends_nothing(self) -> None:
        self.ask()
        self.now -= 60
        self.ask()
        self.now -= 0.001
        with self.assertRaises(onlyonce.ClockWentBack):
            self.ask()

    def test_what_counts_is_noted(self) -> None:
        document = json.dumps({"type": "/problems/outcome-unknown"}).encode()
        problem = {"content-type": "application/problem+json"}
        cases: List[Any] = [
            # What was said, and what is noted: a status, "unknown", or nothing.
            (200, {}, None, 200),
            (402, {}, None, 402),
            (503, {}, None, None),
            (409, {}, None, None),
            (503, {"onlyonce-status": "replayed"}, None, 503),
            (503, {"idempotent-replayed": "true"}, None, 503),
            (503, {"x-should-retry": "false"}, None, 503),
            (402, {"stripe-should-retry": "true"}, None, None),
            (502, {**problem, "x-should-retry": "false"}, document, "unknown"),
            (502, {"x-should-retry": "false"}, document, 502),
        ]
        for n, (status, headers, body, noted) in enumerate(cases):
            with self.subTest(status=status, headers=headers):
                keys = ActionKeys(self.keys_folder, clock=lambda: self.now)
                call = keys.call(f"n{n}")
                call.key("POST", URL)
                call.answered(status, headers, body)
                taken = keys.folder.look(f"n{n}")
                assert taken is not None
                found = taken.note and ("unknown" if taken.note.answered is None else taken.note.answered)
                self.assertEqual(found, noted)

    def test_what_is_done_stays_done(self) -> None:
        self.ask().answered(200, {})
        self.ask().answered(401, {})
        kept = KeyFolder(self.keys_folder).look("a")
        assert kept is not None and kept.note is not None
        self.assertEqual(kept.note.answered, 200)

    def test_a_note_cannot_touch_the_key_of_another(self) -> None:
        folder = KeyFolder(self.keys_folder)
        late = self.ask()
        folder.forget("a")
        folder.take("a", Entry("k2", "f", datetime.now(timezone.utc)))
        late.answered(200, {})
        kept = folder.look("a")
        assert kept is not None
        self.assertEqual((kept.entry.key, kept.note), ("k2", None))


if __name__ == "__main__":
    unittest.main()
