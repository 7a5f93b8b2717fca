"""Data sets on the Hub: what is streamed of them, and what is not asked for twice."""

from pathlib import Path

import pytest
import soundfile
from datasets import Audio, Dataset
from huggingface_hub import HfApi
from test_sources import load_rows, mix  # noqa: F401  the fixture

from training.loop.sources import read_data


def rows_of_hub(folder) -> list[dict]:
    """The rows of the parquet file of `mix` as they are on the Hub: the recordings are inside."""
    rows = load_rows(next((folder / "parquet").glob("*.parquet")))
    return [{**row, "audio": {"bytes": (folder / row["audio"]["path"]).read_bytes(), "path": Path(row["audio"]["path"]).name}} for row in rows]


def upload(folder, rows, split="train") -> None:
    """Makes or changes a split of tester/maori."""
    Dataset.from_list(rows).cast_column("audio", Audio(decode=False)).to_parquet(folder / "inside.parquet")
    api = HfApi(token="a-token")
    api.create_repo("tester/maori", repo_type="dataset", exist_ok=True)
    api.upload_file(path_or_fileobj=folder / "inside.parquet", path_in_repo=f"data/{split}-00000-of-00001.parquet", repo_id="tester/maori", repo_type="dataset")


def test_a_dataset_on_the_hub_is_streamed_and_stops_at_its_minutes(mix, hub, tmp_path):  # noqa: F811
    upload(tmp_path, rows_of_hub(tmp_path))
    clips, _ = read_data(["hub:tester/maori"], tmp_path / "cache", minutes=0.9 / 60)
    assert [(c.language, c.text, c.split) for c in clips] == [("mi", "ngā", "train"), ("mi", "kupu", "train")]
    assert all(c.audio.suffix == ".flac" and soundfile.info(str(c.audio)).duration == 0.5 for c in clips)


def test_a_dataset_on_the_hub_is_downloaded_once_a_cache_while_it_stays_as_it_is(mix, hub, tmp_path):  # noqa: F811
    """A run that is killed goes on without its downloads; what has changed, or is asked for otherwise, is read anew."""
    rows = rows_of_hub(tmp_path)

    def again(**settings) -> tuple[list, bool]:
        hub.requests.clear()
        clips, report = read_data(["hub:tester/maori"], tmp_path / "cache", **settings)
        downloaded = any("train-00000" in path and method == "GET" for method, path, *_ in hub.requests)
        assert downloaded != any(f"the {len(clips)} clips that were read of it before" in line for line in report.lines(clips))
        return clips, downloaded

    upload(tmp_path, rows)
    first, downloaded = again()
    assert downloaded and again() == (first, False)
    assert again(minutes=0.9 / 60) == (first[:2], True) and again(minutes=0.9 / 60) == (first[:2], False)
    assert again(min_s=0.3) == (first, True)
    first[0].audio.unlink()  # a recording is lost: it is fetched again
    assert again() == (first, True)
    upload(tmp_path, [*rows[1:], {**rows[0], "sentence": "hou"}])
    changed, downloaded = again()
    assert downloaded and "hou" in [clip.text for clip in changed] and again() == (changed, False)


def test_of_a_streamed_dataset_only_the_splits_that_are_wanted_are_read(mix, hub, tmp_path):  # noqa: F811
    for split in ("train", "test"):
        upload(tmp_path, rows_of_hub(tmp_path), split)
    both, _ = read_data(["hub:tester/maori"], tmp_path / "cache")
    assert {clip.split for clip in both} == {"train", "test"}
    hub.requests.clear()
    clips, report = read_data(["hub:tester/maori"], tmp_path / "other", splits={"test"})
    assert clips and {clip.split for clip in clips} == {"test"} and len(clips) == len(both) / 2
    read = [sum(f"{split}-00000" in path and method == "GET" for method, path, *_ in hub.requests) for split in ("train", "test")]
    assert read[0] <= 1 <= read[1]  # of train what its columns are, which `datasets` asks the first file for
    assert "hub:tester/maori: train not read, so nobody knows what it shares with the rest" in report.lines(clips)
    with pytest.raises(ValueError, match="hub:tester/maori holds no rows of validation; it has test, train."):
        read_data(["hub:tester/maori"], tmp_path / "other", splits={"validation"})
    texts = [f"mi={tmp_path / 'inside.parquet'}"]  # of no split: all is read, and divided by a hash
    assert read_data(texts, tmp_path / "local", splits={"test"})[0] == read_data(texts, tmp_path / "local")[0]
