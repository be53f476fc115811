"""bAbI: files of both layouts, damaged ones, what becomes of words and answers, errors by task."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.training import loop
from apical.data import sequences
from apical.data.places import DamagedFile, MissingData
from apical.data.sequences import NOTHING, Babi, Stream
from apical.data.sequences.babi import errors, load, read

REAL = Path(os.environ.get("APICAL_DATA", "nowhere"))
ONE = """1 Mary moved to the hall.
2 Where is Mary?\thall\t1
3 John took the milk there.
4 What is John carrying? \tmilk,apple\t3 2
1 The hall is the hall of John.
2 Is John in the hall?\tno\t1
"""
TWO = "1 John moved to Mary.\n2 Where is John?\tHall\t1\n"


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APICAL_DATA", raising=False)
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published layout; "qa10" comes after "qa2"."""
    place = tmp_path / "data" / "babi" / "en"
    place.mkdir(parents=True)
    for name, train, test in (("qa2_two", ONE, TWO), ("qa10_ten", TWO, TWO + ONE)):
        (place / f"{name}_train.txt").write_text(train)
        (place / f"{name}_test.txt").write_text(test)
    return place


def joint(tmp_path: Path, train: str = ONE, test: str = TWO) -> str:
    place = tmp_path / "joint"
    place.mkdir()
    (place / "all_shuffled_train.txt").write_text(train)
    (place / "all_shuffled_test.txt").write_text(test)
    return str(place)


def test_a_story_is_its_lines() -> None:
    first, second = read(ONE.splitlines(), "file", "qa3")
    assert [line.words for line in first.lines] == [
        ("mary", "moved", "to", "the", "hall"),
        ("where", "is", "mary"),
        ("john", "took", "the", "milk", "there"),
        ("what", "is", "john", "carrying"),
    ]
    assert [line.answer for line in first.lines] == [None, "hall", None, "milk,apple"]
    assert (first.questions, second.questions, first.task) == (2, 1, "qa3")


def test_both_layouts(folder: Path, tmp_path: Path) -> None:
    stories = load(str(folder.parents[1]))
    assert [story.task for story in stories.train] == ["qa2", "qa2", "qa10"]
    assert [story.task for story in stories.test] == ["qa2", "qa10", "qa10", "qa10"]
    assert load(str(folder)) == stories
    one = load(joint(tmp_path))
    assert [story.task for story in one.train + one.test] == [""] * 3
    assert one.train[0].lines[0].words == stories.train[0].lines[0].words


def test_a_damaged_file_is_told() -> None:
    for text, told in (
        ("2 Mary moved.\n", "line 1 is damaged: it starts with '2'; expected 1\\."),
        (
            "1 Mary moved.\n3 John moved.\n",
            "line 2 is damaged: it starts with '3'; expected 1 or 2",
        ),
        ("1 Mary moved.\nJohn moved.\n", "line 2 is damaged: it starts with 'John'"),
        ("1 Mary moved.\n2 Where?\t\t1\n", "line 2 is damaged: the question has no answer"),
        ("1 ...\n", "line 1 is damaged: it has no word"),
        ("", "stories.txt is damaged: it has no line"),
    ):
        with pytest.raises(DamagedFile, match=told):
            read(text.splitlines(), "stories.txt")


def test_a_task_without_its_other_split_is_told(folder: Path) -> None:
    (folder / "qa10_ten_test.txt").unlink()
    with pytest.raises(DamagedFile, match="qa10_ten_train.txt is there; expected its test split"):
        load(str(folder))
    (folder / "qa10_ten_test.txt").write_bytes(b"1 \xff\n")
    with pytest.raises(DamagedFile, match=r"qa10_ten_test.txt is damaged: 'utf-8'.*in UTF-8"):
        load(str(folder))


def test_the_joint_file_without_the_other_is_told(tmp_path: Path) -> None:
    root = joint(tmp_path)
    (Path(root) / "all_shuffled_test.txt").unlink()
    with pytest.raises(DamagedFile, match="joint is damaged: all_shuffled_train.txt is there"):
        load(root)


def test_missing_files_are_told_with_every_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"'babi' was not found .*all_shuffled_train.txt"):
        load(str(tmp_path))


def test_an_unknown_word_in_a_test_story_is_told(tmp_path: Path) -> None:
    root = joint(tmp_path, test=TWO + "1 Mary moved to Sandra quickly.\n2 Where?\thall\t1\n")
    told = r"all_shuffled_test.txt, line 3: 'sandra', 'quickly' of the test story occurs in none of"
    with pytest.raises(ValueError, match=told):
        Babi(4, root).draw(1, torch.Generator())


def test_stories_without_a_question_are_refused(tmp_path: Path) -> None:
    root = joint(tmp_path, train="1 Mary moved to the hall.\n" * 3, test="1 Mary moved.\n")
    with pytest.raises(ValueError, match="none of the 2 training stories has a question"):
        Babi(4, root).draw(1, torch.Generator())


WORDS = sorted("mary moved to the hall where is john took milk there what carrying of in".split())


def test_sentences_and_answers_as_numbers(tmp_path: Path) -> None:
    task = Babi(4, joint(tmp_path, test=TWO + "1 John moved.\n2 Where is Mary?\tmilk\t1\n"))
    assert (task.inputs, task.outputs) == (2 * len(WORDS) + 1, 3 + 1)
    x, y = task.stories.batch(task.stories.train)
    assert x.shape == (2, 4, task.inputs)
    bag, place = x[:, :, : len(WORDS)], x[:, :, len(WORDS) : -1]
    expected = torch.zeros(len(WORDS))
    expected_place = torch.zeros(len(WORDS))
    for position, word in enumerate("the hall is the hall of john".split(), 1):
        expected[WORDS.index(word)] += 1
        expected_place[WORDS.index(word)] += position / 7
    torch.testing.assert_close(bag[1, 0], expected)
    torch.testing.assert_close(place[1, 0], expected_place)
    assert x[:, :, -1].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert (x[1, 2:] == 0).all()
    assert y.tolist() == [[NOTHING, 0, NOTHING, 1], [NOTHING, 2, NOTHING, NOTHING]]
    _, asked = task.stories.batch(task.stories.test)
    assert asked[1].tolist() == [NOTHING, 3]  # an answer that no training story gives


def many(tmp_path: Path) -> Babi:
    """41 short stories with two questions each and a long one; number 0, 20, 40 are held out."""
    short = "1 Mary moved.\n2 Who?\tMary\t1\n3 Who moved?\tMary\t1\n"
    alone = "1 John moved.\n2 Who?\tJohn\t1\n"
    long = alone + "3 John moved.\n4 John moved.\n"
    stories = [short if number % 2 else alone for number in range(41)]
    return Babi(3, joint(tmp_path, train="".join([*stories, long]), test=short + long))


def test_training_draws_by_question_validation_and_test_are_all_there_is(tmp_path: Path) -> None:
    task = many(tmp_path)
    x, y = task.draw(2000, torch.Generator().manual_seed(0))
    assert x.shape == (2000, 3, task.inputs)
    asked = task.weights(y)
    assert asked.unique().tolist() == [1.0, 2.0]
    # 20 stories of two questions and 18 of one: they are drawn as 40 to 18
    assert float((asked == 2).double().mean()) == pytest.approx(40 / 58, abs=0.03)
    held_out = Stream(task, 5, 2, seed=0, purpose="validation")
    assert len(held_out.split) == 3 and len(held_out) == 2
    test = Stream(task, 10_000, 1, seed=0, purpose="test")
    assert [y.shape[1] for _, y in test.epoch(0)] == [3, 4]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(test.epoch(0), test.epoch(7), strict=True))


def test_no_story_is_short_enough(tmp_path: Path) -> None:
    task = Babi(2, joint(tmp_path, train="1 A b.\n2 A.\n3 B?\ta\t1\n" * 2, test="1 A.\n"))
    with pytest.raises(ValueError, match="length=2, but the shortest .* has 3 steps"):
        task.draw(1, torch.Generator())


class Always(nn.Module):
    """Gives one answer to everything."""

    def __init__(self, task: Babi, answer: str) -> None:
        super().__init__()
        self.scores = torch.zeros(task.outputs)
        self.scores[task.stories.answers[answer]] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(*x.shape[:2], -1)


def test_errors_by_task_where_it_is_known(folder: Path, tmp_path: Path) -> None:
    task = Babi(4, str(folder))
    # qa2: one question, answered by "hall"; qa10: "hall", "hall", "milk,apple", "no"
    found = errors(Always(task, "hall"), task, batch_size=2)
    assert found == pytest.approx({"qa2": 0.0, "qa10": 0.5, "mean": 0.25})
    task = Babi(4, joint(tmp_path, test=TWO + ONE))
    assert errors(Always(task, "hall"), task) == pytest.approx({"mean": 0.5})


def test_a_run_counts_test_questions_not_stories(folder: Path, tmp_path: Path) -> None:
    experiment = Experiment(
        task="babi",
        length=4,
        net="mnm",
        net_options={"hidden": 4, "width": 4},
        epochs=1,
        batches=1,
        batch_size=2,
        probe_every=0,
    )
    execution = Execution(data_root=str(folder))
    row = loop.run(experiment, tmp_path / "run", execution)
    assert row["test_count"] == 4
    assert row["test_acc"] * 5 == pytest.approx(round(row["test_acc"] * 5))  # of five questions
    with pytest.raises(ValueError, match="'root' is a folder"):
        Experiment(task="babi", length=4, net="mnm", task_options={"root": "here"})


@pytest.mark.skipif(not (REAL / "babi").is_dir(), reason="needs babi in APICAL_DATA")
def test_the_published_stories() -> None:
    stories = load(str(REAL))
    assert sum(story.questions for story in stories.train) == 20_000
    assert sum(story.questions for story in stories.test) == 20_000
    task = sequences.build("babi", 20, root=str(REAL))
    assert (task.inputs, task.outputs) == (2 * 145 + 1, 57 + 1)
