"""LLaVA's data as conversations, and conversations with images out of Hugging Face datasets."""

import json
import os

import pytest
import torch
import words
from cornstarch_vision.llava_data import LlavaData, to_messages
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core import MultimodalCollator
from cornstarch_core.errors import InputError, MediaError, PlaceholderMismatchError

IMAGE = {"type": "image"}


def text(said):
    """A typed text part."""
    return {"type": "text", "text": said}


def entry(*values, **fields):
    """An entry in which human and GPT take turns."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": "000000033471", **fields, "conversations": turns}


ENTRIES = [
    entry("<image>\nWhat is in the picture?", "A cat.", "And?\n<image>", "A dog.", image=["coco/0.png", "1.png"]),
    entry("What is a dog?", "It is a cat.", id=7, model=""),
    entry("<image>\nWhich digit is this?", "It is a seven.", image="2.png"),
]


@pytest.fixture
def folder(tmp_path):
    """The images of the entries, in a folder."""
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for seed, name in enumerate(("coco/0.png", "1.png", "2.png")):
        words.image(seed).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def collator():
    """For a model with CLIP's 17 tokens an image, and a template for strings."""
    return MultimodalCollator(words.processor(tokens={"vision": "<image>"}, chat_template=words.CHATML))


def write(path, entries):
    """A file of entries, as a list or one a line."""
    lines = "\n".join(map(json.dumps, entries)) + "\n\n"
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(entries))
    return path


def test_what_cannot_be_trained_on_is_told_beforehand(folder, tmp_path):
    """An image that is not there, a folder in its place, and turns that can't be converted; what is in order gives nothing."""
    bad = [
        entry("<image>\nWhat?", "A cat.", image="coco/9.png"),
        entry("<image>\nWhat?", "A cat.", image="coco"),
        entry("<image>\nWhat?", "A cat."),
    ]
    data = LlavaData(write(tmp_path / "data.json", [*ENTRIES, *bad]), folder)
    assert [data.problem(index) for index in range(3)] == ["", "", ""]
    where = f"{tmp_path / 'data.json'}[%d]: entry '000000033471': "
    for index, name in ((3, "9.png"), (4, "")):
        assert data.problem(index) == where % index + f"there is no image {folder / 'coco' / name}"
    assert data.problem(5).startswith(where % 5 + "its turns have 1 <image>, but 'image' lists 0 images. ")


# --- one entry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("<image>\nWhat?", [IMAGE, text("\nWhat?")]),
        ("What?\n<image>", [text("What?\n"), IMAGE]),
        (" a <image> b<image>", [text(" a "), IMAGE, text(" b"), IMAGE]),
        ("<image><image>", [IMAGE, IMAGE]),
        ("<image>", [IMAGE]),
        ("What?", [text("What?")]),
        ("", [text("")]),
    ],
)
def test_images_stay_where_they_stand(value, content):
    """And the text around them is not touched; always typed parts, so that a column has one type."""
    images = [f"{number}.jpg" for number in range(value.count("<image>"))]
    row = to_messages(entry(value, "Yes.", image=images), "images")
    assert row == {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [text("Yes.")]}],
        "images": [os.path.join("images", image) for image in images],
    }


@given(value=st.lists(st.sampled_from(["<image>", "<", "image>", "\n", " ", "a"])).map("".join))
def test_nothing_is_lost_or_made_up(value):
    """The parts, written one after another, are the turn."""
    images = ["a.jpg"] * value.count("<image>")
    (message,) = to_messages(entry(value, image=images), "")["messages"]
    assert message["content"]
    assert "".join(part.get("text", "<image>") for part in message["content"]) == value


def test_an_entry_of_the_published_file(tmp_path):
    """One image by its path; the folder may be a path as well; what else there is goes."""
    one = entry(
        "What are the colors of the bus in the image?\n<image>", "Red.", image="coco/train2017/000000033471.jpg"
    )
    assert to_messages({**one, "model": "gpt-4"}, tmp_path) == {
        "messages": [
            {"role": "user", "content": [text("What are the colors of the bus in the image?\n"), IMAGE]},
            {"role": "assistant", "content": [text("Red.")]},
        ],
        "images": [str(tmp_path / "coco/train2017/000000033471.jpg")],
    }


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": []}])
def test_entries_of_text_have_no_images(image):
    """Missing, ``None`` as datasets fill it in, or an empty list: an empty list comes out."""
    assert to_messages(entry("Hi", "Yes.", **image), "images")["images"] == []


def test_speakers_have_several_names():
    """Of all kinds of files."""
    turns = [{"from": name, "value": "a"} for name in ("system", "human", "gpt", "user", "assistant")]
    roles = [message["role"] for message in to_messages({"conversations": turns}, "")["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_the_entry_is_left_as_it_is():
    """Converting changes nothing in it."""
    one = entry("<image>\nWhat?", "Yes.", image=["a.jpg"])
    before = json.dumps(one)
    to_messages(one, "images")["images"].append("b.jpg")
    assert json.dumps(one) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": None}, r"entry 7: its 'conversations' are missing; expected a list of turns"),
        ({"conversations": []}, r"entry 7: its 'conversations' are empty"),
        ({"conversations": "Hi"}, r"entry 7: its 'conversations' are a str"),
        ({"conversations": ["Hi"]}, r"entry 7, turn 0: expected strings under 'from' and 'value', got a str\. Repair"),
        ({"conversations": [{"from": "human"}]}, r"entry 7, turn 0: .* got str and NoneType\. Repair"),
        (
            {"conversations": [{"from": "bard", "value": "a"}]},
            r"entry 7, turn 0: unknown speaker 'bard'; .*human.*Rename",
        ),
        ({"image": 3}, r"entry 7: 'image' has a int; expected a path .*leave it out"),
        ({"image": ["a.jpg", None]}, r"entry 7: 'image' has a NoneType"),
        ({"image": {"path": "a.jpg"}}, r"entry 7: 'image' has a dict"),
    ],
)
def test_faulty_entries_are_refused(change, message):
    """The error has the id, what was expected and got, and what to do."""
    with pytest.raises(InputError, match=message):
        to_messages({**entry("Hi", id=7), **change}, "images")


@pytest.mark.parametrize(
    ("value", "image", "message"),
    [
        (
            "What?",
            {"image": "a.jpg"},
            r"entry '33': its turns have 0 <image>, but 'image' lists 1 images\. Write",
        ),
        ("<image>", {}, r"entry '33': its turns have 1 <image>, but 'image' lists 0 images"),
        ("<image><image>", {"image": ["a.jpg"]}, r"2 <image>, .* 1 images"),
    ],
)
def test_placeholders_and_images_are_equally_many(value, image, message):
    """Or the wrong image would be looked at."""
    with pytest.raises(PlaceholderMismatchError, match=message):
        to_messages(entry(value, "Yes.", id="33", **image), "images")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_file_is_a_dataset(tmp_path, name):
    """As many items as entries, each as it is converted by itself."""
    data = LlavaData(write(tmp_path / name, ENTRIES), tmp_path / "images")
    assert len(data) == 3
    assert [data[index] for index in range(3)] == [to_messages(one, tmp_path / "images") for one in ENTRIES]
    assert data[-1] == data[2]


def test_entries_are_converted_when_they_are_asked_for(tmp_path):
    """A faulty one hurts nobody before; the error has the file, the place and the id."""
    data = LlavaData(write(tmp_path / "data.json", [*ENTRIES, entry("<image>", id=8)]), tmp_path)
    assert data[0]["images"]
    with pytest.raises(PlaceholderMismatchError, match=r"data\.json\[3\]: entry 8: its turns have 1 <image>"):
        data[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            '{"annotations": []}',
            r"a\.json: expected a list of entries .*got a dict\. Convert data of another layout",
        ),
        ("a.json", '[{"messages": [], "images": []}]', r"a\.json\[0\]: expected .*dict with 'messages', 'images'\."),
        ("a.json", '[{"conversations": []}, "b"]', r"a\.json\[1\]: expected .*got a str\."),
        ("a.json", "[{", r"a\.json: it can't be read as JSON: .*line 1 column 3.*Download or write"),
        ("a.jsonl", '{"conversations": []}\n\n{', r"a\.jsonl: it can't be read as JSON: line 3: "),
        ("a.jsonl", '[{"conversations": []}]\n', r"a\.jsonl\[0\]: expected .*got a list\."),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path, name, content, message):
    """At once, with what was expected and got."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        LlavaData(tmp_path / name, tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    """An archive, say, in place of what is in it."""
    (tmp_path / "a.json").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(InputError, match=r"a\.json: it can't be read as JSON"):
        LlavaData(tmp_path / "a.json", tmp_path)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_that_of_the_same_conversations(tmp_path, folder, collator):
    """Text as it stands in the file, images in order, labels on what GPT says and on nothing else."""
    data = LlavaData(write(tmp_path / "data.json", ENTRIES), folder)
    batch = collator([data[index] for index in range(3)])
    plain = [
        [
            {"role": ("user", "assistant")[index % 2], "content": turn["value"]}
            for index, turn in enumerate(one["conversations"])
        ]
        for one in ENTRIES
    ]
    images = [[words.image(0), words.image(1)], [], [words.image(2)]]
    samples = [{"messages": said, "images": own} for said, own in zip(plain, images, strict=True)]
    assert words.same(batch, collator(samples))
    assert batch["encoder_inputs"]["vision"]["pixel_values"].shape[0] == 3
    learned = [row[row != -100].tolist() for row in batch["labels"]]
    assert [collator.processor.decode(row) for row in learned] == [
        "A cat.<|im_end|>\nA dog.<|im_end|>\n",
        "It is a cat.<|im_end|>\n",
        "It is a seven.<|im_end|>\n",
    ]


def test_a_missing_image_is_named_when_the_batch_is_made(tmp_path, folder, collator):
    """Not before: nobody opens half a million files to begin with."""
    (folder / "2.png").unlink()
    data = LlavaData(write(tmp_path / "data.json", ENTRIES), folder)
    with pytest.raises(MediaError, match=r"vision: sample 1, item 0: there is no image file '.*images/2\.png'"):
        collator([data[1], data[2]])


def test_a_broken_image_is_named_too(tmp_path, folder, collator):
    """A download that was cut off."""
    path = folder / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    data = LlavaData(write(tmp_path / "data.json", ENTRIES), folder)
    with pytest.raises(MediaError, match=r"sample 0, item 0: image file '.*images/2\.png' can't be read: "):
        collator([data[2]])


def test_a_data_loader_with_workers(tmp_path, folder, collator):
    """The dataset and the collator go to other processes."""
    data = LlavaData(write(tmp_path / "data.json", ENTRIES), folder)
    loader = torch.utils.data.DataLoader(data, batch_size=3, collate_fn=collator, num_workers=1)
    (batch,) = loader
    assert words.same(batch, collator([data[index] for index in range(3)]))


# --- Hugging Face datasets --------------------------------------------------------------------------------------------


@pytest.fixture
def datasets():
    """The library, offline and without progress bars."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    return library


@pytest.fixture
def rows(folder):
    """The entries converted, with images by their paths."""
    return [to_messages(one, folder) for one in ENTRIES]


def table(datasets, rows, *, decode):
    """A dataset with a column of lists of images."""
    made = datasets.Dataset.from_list(rows)
    return made.cast_column("images", [datasets.Image(decode=decode)])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("decode", [False, True])
def test_rows_of_a_dataset_give_the_same_batch(datasets, rows, collator, decode, streaming):
    """Decoded to PIL or not, in memory or streamed; text that pyarrow fills in for an image is ``None``."""
    made = table(datasets, rows, decode=decode)
    samples = list(made.to_iterable_dataset() if streaming else made)
    assert samples[0]["messages"][0]["content"][0] == {"type": "image", "text": None}
    assert type(samples[0]["images"][0]) is dict if not decode else samples[0]["images"][0].size == (40, 30)
    assert words.same(collator(samples), collator(rows))


def test_images_that_a_dataset_holds_itself_give_the_same_batch(datasets, rows, collator):
    """Undecoded they are bytes without a file, as in datasets from a hub."""
    seeds = [(0, 1), (), (2,)]
    held = [{**row, "images": list(map(words.image, own))} for row, own in zip(rows, seeds, strict=True)]
    made = table(datasets, held, decode=False)
    assert made[0]["images"][0]["path"] is None
    assert words.same(collator(list(made)), collator(rows))


@pytest.mark.parametrize("decode", [False, True])
def test_images_inside_the_messages_of_a_dataset_give_the_same_batch(datasets, rows, collator, decode):
    """The ``Image`` feature in a part; other parts have ``None`` there."""
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image(decode=decode)}
    features = datasets.Features({"messages": [{"role": datasets.Value("string"), "content": [part]}]})
    made = datasets.Dataset.from_list([inside(row) for row in rows], features=features)
    assert made[1]["messages"][0]["content"] == [{"type": "text", "text": "What is a dog?", "image": None}]
    assert words.same(collator(list(made)), collator(rows))


def inside(row):
    """The row with its images in the messages."""
    images = iter(row["images"])
    parts = [
        [{**part, "image": next(images)} if part == IMAGE else part for part in m["content"]] for m in row["messages"]
    ]
    said = zip(row["messages"], parts, strict=True)
    return {"messages": [{**message, "content": content} for message, content in said]}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_is_converted_by_map(datasets, folder, rows, collator, streaming):
    """Columns of the entries go; then a row is what the collator takes."""
    listed = [{"image": None, **one} for one in ENTRIES]  # a column of lists: pyarrow knows no "a path or a list"
    for one in listed:
        one["image"] = [one["image"]] if isinstance(one["image"], str) else one["image"]
        one["id"] = str(one["id"])
    made = datasets.Dataset.from_list(listed)
    columns = made.column_names
    made = made.to_iterable_dataset() if streaming else made
    made = made.map(to_messages, fn_kwargs={"image_folder": str(folder)}, remove_columns=columns)
    assert words.same(collator(list(made)), collator(rows))


def test_features_tell_the_type_of_a_column_that_begins_without_images(datasets, folder, collator):
    """As the docstring says, where the first entries that are written together have none."""
    made = datasets.Dataset.from_list([{"image": None, **ENTRIES[1], "id": "7"}, {**ENTRIES[2], "id": "8"}])
    string = datasets.Value("string")
    features = datasets.Features(
        {"messages": [{"role": string, "content": [{"type": string, "text": string}]}], "images": [datasets.Image()]}
    )
    options = {"fn_kwargs": {"image_folder": str(folder)}, "remove_columns": made.column_names, "writer_batch_size": 1}
    converted = made.map(to_messages, features=features, **options)
    assert words.same(collator(list(converted)), collator([to_messages(one, folder) for one in ENTRIES[1:]]))
