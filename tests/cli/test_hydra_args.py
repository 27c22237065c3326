"""Arguments that Hydra would misread: names of files, other alphabets, moved data."""

from __future__ import annotations

from pathlib import Path

import pytest

from genlab.cli.hydra_args import add_data_places, quote_special_values
from genlab.errors import UserError


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("dataset.path=фото", "dataset.path='фото'"),
        ("out=~/runs", "out='~/runs'"),
        ("run=a=b", "run='a=b'"),
        ("dataset.path=My Photos (2024)", "dataset.path='My Photos (2024)'"),
        ("dataset.path=photos[1]", "dataset.path='photos[1]'"),
        ("dataset.path=a,b", "dataset.path='a,b'"),
        ("dataset.path={x:1}", "dataset.path='{x:1}'"),
        ("dataset.path=2024", "dataset.path='2024'"),
        ("out=1e3", "out='1e3'"),
        ("samples=a#b&c;d", "samples='a#b&c;d'"),
        ("prompt=it's a dog", "prompt='it\\'s a dog'"),
        ("label=кошка", "label='кошка'"),
        ("label=[кошка,dog]", "label=['кошка',dog]"),
        ("runs=[a,б]", "runs=[a,'б']"),
        ("runs=[a,b=c,'d,e']", "runs=[a,'b=c','d,e']"),
        ("x={a:б}", "x={a:'б'}"),
    ],
)
def test_names_are_quoted(word: str, wanted: str) -> None:
    """What is text to a user, but not to Hydra's grammar, gets quotes."""
    assert quote_special_values([word]) == [wanted]


@pytest.mark.parametrize(
    "word",
    [
        "dataset.path=photos",
        "dataset.path='фото'",
        'dataset.path="a b"',
        "dataset.path=null",
        "dataset.path=${oc.env:HOME}/x",
        "runs=[a,b*]",
        "images=true",
        "label=[Ankle boot,T-shirt/top]",
        "label=cat,dog",
        "label=[1,2",
        "dataset.class_fraction={dog:0.1}",
        "sampler.guidance_interval=[0.1,0.9]",
        "~trainer.x",
        "+a=",
        "--cfg",
    ],
)
def test_other_values_stay_as_they_are(word: str) -> None:
    """Numbers, lists, mappings, quotes and references keep their meaning."""
    assert quote_special_values([word]) == [word]


def test_commas_of_a_sweep_stay_unless_there_is_such_a_file(tmp_path: Path, monkeypatch) -> None:
    """`-m dataset.path=a,b` sweeps over two folders, if there is none of the name `a,b`."""
    monkeypatch.chdir(tmp_path)
    words = ["-m", "dataset.path=a,b", "trainer.lr=range(1,3)"]
    assert quote_special_values(words) == words
    (tmp_path / "a,b").mkdir()
    assert quote_special_values(words)[1] == "dataset.path='a,b'"


def test_a_key_that_hydra_cannot_read_is_refused() -> None:
    """The message says what to give instead."""
    with pytest.raises(UserError, match="дог cannot be a name.*by its number"):
        quote_special_values(["dataset.class_fraction={дог:0.1}"])


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        ("train", ["resume=run", "dataset.path=x"], ["resume=run", "++dataset.path=x"]),
        ("evaluate", ["run=a", "dataset.base.path=x"], ["run=a", "++dataset.base.path=x"]),
        ("train", ["dataset.path=x"], ["dataset.path=x"]),
        ("evaluate", ["dataset=image_folder", "dataset.path=x"], None),
        ("train", ["resume=run", "dataset.size=8"], None),
    ],
)
def test_the_place_of_data_is_an_option_of_every_run(
    command: str, words: list[str], wanted: list[str] | None
) -> None:
    """Without `dataset=`, the composed config need not have the option that the run has."""
    assert add_data_places(command, words) == (wanted or words)
