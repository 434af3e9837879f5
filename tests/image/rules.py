"""What stage.py takes from an engine's rules, tried by themselves: `python3 tests/image/rules.py`."""

import tempfile
import unittest
from pathlib import Path

from stage import Build, Context, Engine, Wrong, instructions


class Rules(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name) / "context"
        for name in ("src/lib.rs", "src/deep/er.rs", "config/a.toml", "config/b.toml", "README.md", "Cargo.toml"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(name)

    def tearDown(self):
        self.scratch.cleanup()

    def sent(self, ignore):
        (self.folder / ".dockerignore").write_text(ignore)
        return sorted(name for name in Context(self.folder).files() if name != ".dockerignore")

    def test_the_last_rule_that_matches_a_path_or_a_folder_above_it_decides(self):
        self.assertEqual(self.sent("*\n!src\n!config/a.toml\n"), ["config/a.toml", "src/deep/er.rs", "src/lib.rs"])
        self.assertEqual(self.sent("# all but deep\n*\n!src\nsrc/deep\n"), ["src/lib.rs"])
        self.assertEqual(self.sent("**/*.rs\nconfig/?.toml\n"), ["Cargo.toml", "README.md"])
        self.assertEqual(self.sent("*.rs\n/README.md\nconfig/\n"), ["Cargo.toml", "src/deep/er.rs", "src/lib.rs"])

    def build(self, text, ignore=""):
        (self.folder / ".dockerignore").write_text(ignore)
        (self.folder / "Dockerfile").write_text(text)
        place = Path(tempfile.mkdtemp(dir=self.scratch.name))
        stage = Build(self.folder, Engine(False, None), place).stage(self.folder / "Dockerfile")
        return stage, sorted(str(path.relative_to(stage.place)) for path in stage.copied)

    def test_a_folder_is_copied_as_its_content_and_a_file_into_a_folder_by_its_name(self):
        _, copied = self.build("FROM scratch\nWORKDIR /app\nCOPY src there\nCOPY config/*.toml Cargo.toml here/\nCOPY README.md ./\n")
        self.assertEqual(
            copied,
            ["app/README.md", "app/here/Cargo.toml", "app/here/a.toml", "app/here/b.toml", "app/there/deep/er.rs", "app/there/lib.rs"],
        )

    def test_between_stages_only_what_is_there(self):
        two = "FROM scratch AS one\nCOPY Cargo.toml /m\nFROM scratch\nCOPY --from=one /m /n\n"
        self.assertEqual(self.build(two)[1], ["n"])
        with self.assertRaisesRegex(Wrong, "/o is not in stage one"):
            self.build(two.replace("=one /m", "=one /o"))

    def test_what_is_kept_back_or_not_understood_is_said(self):
        for text, ignore, why in [
            ("FROM scratch\nCOPY src .\n", "*\n!config\n", "src: .dockerignore keeps it back"),
            ("FROM scratch\nCOPY examples .\n", "", "examples: it is not there"),
            ("FROM scratch\nADD src .\n", "", "instruction ADD"),
            ("FROM alpine:3\n", "", "alpine:3.*does not know this base"),
            ("FROM scratch\nCMD run\n", "", "write it as a list"),
            ("FROM scratch\nCOPY --chown=1 src .\n", "", "--from alone"),
            ("FROM scratch\nWORKDIR $HERE\n", "", "HERE is set nowhere"),
        ]:
            with self.subTest(text), self.assertRaisesRegex(Wrong, why):
                self.build(text, ignore)

    def test_continued_lines_are_one_instruction_and_comments_none(self):
        file = self.folder / "Dockerfile"
        file.write_text("# a\nFROM scratch\n\nRUN one \\\n    # why\n    && two\nENV A=b\n")
        self.assertEqual(instructions(file), [("FROM", "scratch"), ("RUN", "one && two"), ("ENV", "A=b")])


if __name__ == "__main__":
    unittest.main()
