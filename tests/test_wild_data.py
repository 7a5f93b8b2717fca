"""What data met in the wild says of itself, and what of that is true: lengths, columns, folders, names."""

import json

import av
import numpy as np
import pytest
import soundfile
from conftest import tiny_model
from datasets import Audio, Dataset
from huggingface_hub import HfApi

from modeling_master_asr import MasterASRProcessor, signs_master_asr, text_master_asr
from modeling_master_asr.audio_master_asr import declares_length, decode_audio
from modeling_master_asr.trainer_utils import ClipCollator
from training.loop import recordings
from training.loop.data import Features
from training.loop.recordings import seconds_of
from training.loop.sources import Clip, read_data, read_manifest

RATE_HZ = 16_000


def noise(path, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).standard_normal(int(seconds * RATE_HZ)) / 10, RATE_HZ)
    return path


def mp3(path, samples, has_tag):
    """Of a variable bit rate, by FFmpeg; a pipe or a stream that was cut leaves no tag with its length."""
    with av.open(str(path), "w", format="mp3", options={} if has_tag else {"write_xing": "0"}) as out:
        stream = out.add_stream("libmp3lame", rate=RATE_HZ, options={"global_quality": "500", "flags": "+qscale"}, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE_HZ
        for block in [*av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE_HZ).resample(frame), None]:
            out.mux(stream.encode(block))
    return path


@pytest.mark.parametrize("has_tag", [True, False])
def test_an_mp3_is_as_long_as_it_sounds_whatever_its_first_frame_lets_guess(tmp_path, has_tag, caplog):
    loud = np.random.default_rng(0).standard_normal(3 * RATE_HZ) / 5
    for name, samples in (("quiet_first", np.concatenate([0 * loud, loud])), ("loud_first", np.concatenate([loud, 0 * loud]))):
        path = mp3(tmp_path / f"{name}.mp3", samples, has_tag)
        assert abs(seconds_of(path) - 6) < 0.2
        assert abs(len(decode_audio(path, RATE_HZ)) / RATE_HZ - 6) < 0.2 and "cut short" not in caplog.text


def test_an_mp3s_tag_is_looked_for_behind_what_names_its_song(tmp_path):
    content = mp3(tmp_path / "a.mp3", np.zeros(RATE_HZ), has_tag=True).read_bytes()
    assert content[:3] == b"ID3"
    size = sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))
    sound, about = content[10 + size :], b"APIC" + bytes(3000) + b"Info Xing VBRI" + bytes(700)
    header = b"ID3\x04\0\0" + bytes(len(about) >> shift & 0x7F for shift in (21, 14, 7, 0))
    (tmp_path / "tagged.mp3").write_bytes(header + about + sound)
    (tmp_path / "untagged.mp3").write_bytes(header + about + sound.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4)))
    assert [declares_length((tmp_path / f"{name}.mp3").open("rb")) for name in ("tagged", "untagged")] == [True, False]


def test_an_empty_text_is_empty_whatever_other_columns_say(tmp_path):
    """How a word is pronounced, in a column that is called as others call their texts."""
    noise(tmp_path / "a.wav")
    (tmp_path / "data.csv").write_text("audio,language,text,transcript\na.wav,de,,ains\na.wav,de,zwei,tsvai\n")
    nulls = [{"audio": "a.wav", "language": "de", "text": None, "transcript": "ains"}, {"audio": "a.wav", "language": "de", "text": "zwei", "transcript": "tsvai"}]
    (tmp_path / "nulls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nulls))
    assert [clip.text for clip in read_data([str(tmp_path / "nulls.jsonl")], tmp_path / "cache")[0]] == ["zwei"]
    mixed = [{"text": "zwei"}, {"sentence": "drei"}, {"text": "vier", "sentence": "fier"}, {"text": " ", "sentence": "x"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps({"audio": "a.wav", "language": "de", **row}) + "\n" for row in mixed))
    clips, report = read_data([str(tmp_path / "mixed.jsonl")], tmp_path / "cache")
    assert [clip.text for clip in clips] == ["zwei", "drei", "vier"] and report.skipped["de"] == {"empty transcript": 1}
    (tmp_path / "two.csv").write_text("audio,language,text,sentence\na.wav,de,zwei,\na.wav,de,,drei\n")
    assert [clip.text for clip in read_manifest(tmp_path / "two.csv")] == ["zwei", "drei"]  # two tables put together
    (tmp_path / "two.jsonl").write_text('{"audio": "a.wav", "language": "de", "text": "zwei"}\n{"path": "a.wav", "locale": "de", "sentence": "drei"}\n')
    Dataset.from_list([{"audio": "a.wav", "language": "de", "text": None, "transcript": "ains"}] * 2).to_parquet(tmp_path / "data.parquet")
    clips, report = read_data([str(tmp_path / "data.csv")], tmp_path / "cache")
    assert [clip.text for clip in clips] == ["zwei"] and report.skipped["de"] == {"empty transcript": 1}
    assert [clip.text for clip in read_manifest(tmp_path / "two.jsonl")] == ["zwei", "drei"]
    assert read_data([str(tmp_path / "data.parquet")], tmp_path / "cache")[1].skipped["de"] == {"empty transcript": 2}


@pytest.mark.parametrize("beside", ["train/metadata.csv", "train.tsv"])
def test_a_folder_of_two_kinds_of_data_is_refused(tmp_path, beside):
    noise(tmp_path / "clips" / "a.wav")
    Dataset.from_list([{"audio": "clips/a.wav", "language": "de", "text": "eins"}]).to_parquet(tmp_path / "data.parquet")
    assert len(read_data([str(tmp_path)], tmp_path / "cache")[0]) == 1  # a folder called clips alone is no data of another kind
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("")
    with pytest.raises(ValueError, match="holds parquet files, such as .*data.parquet, and data of another kind beside them, .*Name what is meant"):
        read_data([str(tmp_path)], tmp_path / "cache")


@pytest.mark.parametrize("name", ["manifest.jsonl", "metadata.jsonl"])
def test_recordings_in_a_folder_called_test_are_test_whatever_the_table_is_called(tmp_path, name):
    rows = [{"audio": f"{split}/{i}.wav", "language": "de", "text": f"satz {'abc'[i]}"} for split in ("train", "dev", "test") for i in range(3)]
    for row in rows:
        noise(tmp_path / row["audio"])
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips, report = read_data([str(tmp_path / name)], tmp_path / "cache")
    assert [clip.split for clip in clips] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert any("train, validation, test by the recordings' folders" in line for line in report.lines(clips))


def test_an_empty_file_is_no_recording_whatever_its_entry_says(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "language": "de", "text": "eins", "duration_s": 5}\n')
    clips, report = read_data([str(tmp_path / "manifest.jsonl")], tmp_path / "cache")
    assert not clips and report.skipped["de"] == {"an empty file": 1}


def test_null_and_nan_are_words_in_a_table_on_the_hub_too(tmp_path, hub):
    api = HfApi(token="a-token")
    api.create_repo("tester/zahlen", repo_type="dataset", exist_ok=True)
    for name in ("a.wav", "b.wav"):
        api.upload_file(path_or_fileobj=noise(tmp_path / name), path_in_repo=name, repo_id="tester/zahlen", repo_type="dataset")
    card = b"---\ndataset_info:\n  features:\n" + b"".join(
        f"  - name: {name}\n    dtype: {kind}\n".encode() for name, kind in (("audio", "string"), ("language", "string"), ("text", "string"), ("duration", "float64"))
    ) + b"---\n"  # fmt: skip
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="tester/zahlen", repo_type="dataset")
    table = b"audio,language,text,duration\na.wav,de,null,0.5\nb.wav,de,nan,\n"
    api.upload_file(path_or_fileobj=table, path_in_repo="train.csv", repo_id="tester/zahlen", repo_type="dataset")
    assert [clip.text for clip in read_data(["hub:tester/zahlen"], tmp_path / "cache")[0]] == ["null", "nan"]


def test_a_set_that_sends_too_much_says_how_it_ends_at_its_minutes(tmp_path):
    shelf = recordings.Shelf("hub:a/b", tmp_path, max_download_gb=0.001)
    with pytest.raises(ValueError, match="hub:a/b has sent more than 0.001 GB of recordings. Name its language, as in xx=hub:a/b, after whose minutes it is left"):
        shelf.count(2_000_000)


def test_a_list_of_clips_is_another_once_any_of_the_code_that_makes_texts_is(tmp_path, monkeypatch):
    shelf = recordings.Shelf("hub:a/b", tmp_path)
    shelf.hub, before = (None, {}), None
    for module in (None, text_master_asr, signs_master_asr):
        if module is not None:
            (tmp_path / "changed.py").write_text(f"# {module.__name__}")
            monkeypatch.setattr(module, "__file__", str(tmp_path / "changed.py"))
        now = shelf.list_of("xx")
        assert now != before
        before = now


def test_a_recording_that_is_called_as_databases_call_theirs_may_change(tmp_path):
    processor = MasterASRProcessor.from_model(tiny_model())
    path = noise(tmp_path / "recordings" / "507f1f77bcf86cd799439011.wav")
    clip = Clip(path, "en", "a", 0.5, "train")
    before = Features(processor, tmp_path / "cache")(clip)
    soundfile.write(path, np.random.default_rng(1).standard_normal(RATE_HZ // 2) / 10, RATE_HZ)
    assert not np.array_equal(Features(processor, tmp_path / "cache")(clip), before)


@pytest.mark.parametrize("text", [None, 5, float("nan")])
def test_what_is_no_text_is_named_by_the_collator(text):
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    row = {"audio": np.zeros(RATE_HZ, dtype=np.float32), "text": text, "language": "en"}
    with pytest.raises(ValueError, match=r"text: got (None|5|nan) \(language 'en', number 0 of the batch\); allowed: what is said, in words. Drop clips without a transcript"):
        ClipCollator(processor, model)([row])


def test_a_data_set_of_paths_becomes_one_of_bytes_by_the_advice(tmp_path):
    data = Dataset.from_dict({"audio": [str(noise(tmp_path / "a.wav"))]}).cast_column("audio", Audio(decode=False))
    with pytest.raises(ValueError) as error:
        MasterASRProcessor.from_model(tiny_model())(audio=data[0]["audio"])
    advice = str(error.value).partition("as bytes: ")[2].rstrip(".")
    row = eval(advice, {"data": data})[0]["audio"]  # as it is printed
    assert MasterASRProcessor.from_model(tiny_model())(audio=row)["attention_mask"].sum() > 0
