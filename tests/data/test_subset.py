import json

import numpy as np
import pytest

from hbo.data.readers import read_records
from hbo.data.rendering import Renderer
from hbo.data.subset import SkippedRecords, check_alone, encode_subset, load_subset
from hbo.errors import ConfigError, DataError
from tests.support.tiny import CHATML, tiny_records, tiny_tokenizer

GOOD = {"prompt": "a", "completion": "b", "grade": 2}


def jsonl(folder, *lines):
    path = folder / "a.jsonl"
    path.write_text("".join(f"{json.dumps(x) if isinstance(x, dict) else x}\n" for x in lines))
    return path


def test_bad_records_stop_the_reading_by_default(tmp_path):
    path = jsonl(tmp_path, GOOD, {"prompt": "a"})
    with pytest.raises(
        DataError, match=r"a record without a response.*on_bad_record: skip"
    ) as error:
        load_subset("s", read_records(path))
    assert error.value.where == f"{path}:2"


def test_bad_records_are_skipped_by_choice_and_listed(tmp_path):
    path = jsonl(tmp_path, GOOD, "nonsense", {"prompt": "a"}, GOOD | {"grade": 5})
    bad = SkippedRecords("skip")
    subset = load_subset("s", read_records(path, bad.on_bad), bad)
    assert subset.examples == ({"prompt": "a", "completion": "b"},) * 2
    assert subset.places == (f"{path}:1", f"{path}:4")
    assert subset.column("grade").tolist() == [2, 5]
    assert [place for place, _ in bad.skipped] == [f"{path}:2", f"{path}:3"]
    assert "not valid JSON" in bad.skipped[0][1]


def test_an_empty_subset_is_an_error(tmp_path):
    with pytest.raises(DataError, match="subset 's' is empty: its source holds no record"):
        load_subset("s", read_records(jsonl(tmp_path)))
    bad = SkippedRecords("skip")
    records = read_records(jsonl(tmp_path, "x"), bad.on_bad)
    with pytest.raises(DataError, match=r"all of its records were skipped.*not valid JSON"):
        load_subset("s", records, bad)


def test_on_bad_record_has_two_values():
    with pytest.raises(ConfigError, match="allowed are error and skip"):
        SkippedRecords("ignore")


@pytest.mark.parametrize("value", [None, True, "x", float("nan"), float("inf"), [1]])
def test_a_difficulty_column_holds_numbers(value, tmp_path):
    path = jsonl(tmp_path, GOOD, GOOD | {"grade": value})
    subset = load_subset("s", read_records(path))
    with pytest.raises(DataError, match="column 'grade' must be a finite number") as error:
        subset.column("grade")
    assert error.value.where == f"{path}:2"
    with pytest.raises(DataError, match=r"needs a column 'level' in each record.*here: grade"):
        subset.column("level")


def test_numbers_as_text_count(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,grade\na,3\nb,1.5\n")
    assert load_subset("s", read_records(path)).column("grade").tolist() == [3, 1.5]


def test_take():
    records = [GOOD | {"grade": i} for i in range(5)]
    subset = load_subset("s", _records(records)).take(np.array([3, 1]))
    assert subset.column("grade").tolist() == [3, 1]
    assert subset.places == ("row 3", "row 1")
    assert len(subset) == 2


def test_encoding_drops_and_counts_what_truncation_empties():
    subset = load_subset("s", _records([GOOD, {"prompt": "x" * 50, "completion": "y"}, GOOD]))
    seen = []
    encoded = encode_subset(
        subset, Renderer(tiny_tokenizer(), max_length=20), progress=lambda *at: seen.append(at)
    )
    assert encoded.rows.tolist() == [0, 2]
    assert encoded.dropped.tolist() == [1]
    assert len(encoded.encoded) == 2
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(DataError, match=r"in 1 of 1 the response is beyond max_length 20"):
        encode_subset(subset.take(np.array([1])), Renderer(tiny_tokenizer(), max_length=20))


def test_what_the_template_refuses_is_a_bad_record():
    long = "{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}"
    picky = tiny_tokenizer(long + CHATML)
    chat = tiny_records(1, layout="chat")[0]
    subset = load_subset("s", _records([chat, chat | {"prompt": chat["prompt"] * 2}]))
    bad = SkippedRecords("skip")
    encoded = encode_subset(subset, Renderer(picky), on_bad=bad.on_bad)
    assert encoded.rows.tolist() == [0]
    assert bad.skipped[0][0] == "row 1"
    with pytest.raises(DataError, match=r"row 1: the chat template refuses.*: no"):
        encode_subset(subset, Renderer(picky))


def test_ifd_needs_prompts():
    subset = load_subset("s", _records([GOOD, {"text": "a"}]))
    encoded = encode_subset(subset, Renderer(tiny_tokenizer()))
    with pytest.raises(DataError, match=r"row 1: difficulty\.metric ifd .* no prompt"):
        check_alone("ifd", subset, encoded)
    check_alone(
        "ifd", subset, encode_subset(subset.take(np.array([0])), Renderer(tiny_tokenizer()))
    )


def _records(rows):
    from hbo.data.readers import Record

    return [Record(None, row, f"row {number}") for number, row in enumerate(rows)]
