"""`~` is the home directory in every path that Python is given, as it is in a shell."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from clipadapt import CoReg, FeatureSet, FeatureStore, ImageSet, ZeroShot, load_clip
from clipadapt.app import course, demo, widgets
from clipadapt.app.runs import predictions, read_config, saved_place
from clipadapt.clip import captions, features, glyphs, index, modelfiles, tables
from clipadapt.clip.features import StoredCLIP, hash_images
from clipadapt.clip.templates import read_templates
from clipadapt.clip.workers import _as_row
from clipadapt.images import datasets, files, pictures, sets
from clipadapt.images.sets import digits
from clipadapt.judge import compare, datatools, robustness
from clipadapt.learning import adapter, hub, training, watching
from clipadapt.learning.export import Exporting
from clipadapt.learning.students import _shorter_side

NOBODY = "~nobody-of-this-name/x"
FITTED = SimpleNamespace(
    _check_fitted=print, _saveable=lambda: ({}, None), _network=print, _export=print
)
FRAME = pd.DataFrame({"image": ["x.png"]})
NONE, ONE = (digits("test").subset(range(count)) for count in (0, 1))


def within(block):
    """A call of a context manager, which is entered."""

    def call(path):
        with block(path):
            pass

    return call


CALLS = {  # by module, function and parameter: all that take a path from a user
    "course.write_course(folder)": course.write_course,
    "course.open_course(folder)": course.open_course,
    "demo.demo(folder)": demo.demo,
    "runs.read_config(path)": read_config,
    "runs.saved_place(saved)": saved_place,
    "widgets._Decisions.save(path)": lambda path: widgets._Decisions.save(None, path),
    "captions.caption(cache)": lambda path: captions.caption(
        captions.AttributeCaptioner(), NONE, "?", path
    ),
    "captions.caption_groups(cache)": lambda path: captions.caption_groups(
        captions.AttributeCaptioner(), NONE, np.empty((0, 1), int), "?", path
    ),
    "captions.TransformersCaptioner.__init__(model)": captions.TransformersCaptioner,
    "features.file_table(location)": features.file_table,
    "features.FeatureStore.__init__(location)": FeatureStore,
    "featuresets._FromArrays.from_npy(path)": FeatureSet.from_npy,
    "featuresets._FromArrays.from_clip_retrieval(folder)": (
        FeatureSet.from_clip_retrieval
    ),
    "featuresets._FromTables.from_parquet(path)": FeatureSet.from_parquet,
    "featuresets._FromTables.from_lance(path)": FeatureSet.from_lance,
    "glyphs.draw_character(path)": lambda path: glyphs.draw_character(path, "a"),
    "index._Saving.save(directory)": lambda path: index.PrototypeIndex.save(None, path),
    "index.PrototypeIndex.load(directory)": index.PrototypeIndex.load,
    "modelfiles.read_settings(path)": modelfiles.read_settings,
    "modelfiles.local_files(folder)": modelfiles.local_files,
    "modelfiles.kept_commit(cache_dir)": lambda path: modelfiles.kept_commit(
        "me/pets", "file", cache_dir=path
    ),
    "tables.FeatureTable.__init__(path)": lambda path: tables.FeatureTable(path, 1),
    "tables.FeatureTable.at(path)": tables.FeatureTable.at,
    "templates.read_templates(path)": read_templates,
    "datasets.read_torchvision(root)": lambda path: datasets.read_torchvision(
        "CIFAR10", path
    ),
    "datasets.read_torchvision(split_file)": lambda path: datasets.read_torchvision(
        "Food101", ".", split_file=path
    ),
    "datasets.read_split_file(path)": lambda path: datasets.read_split_file(path, "."),
    "files.at_home(path)": files.at_home,
    "files.whole_file(target)": within(files.whole_file),
    "files.whole_directory(target)": within(files.whole_directory),
    "files.recover_directory(target)": files.recover_directory,
    "files.replace_directory(target)": lambda path: files.replace_directory(path, "."),
    "files.replace_directory(finished)": (
        lambda path: files.replace_directory("x", path)
    ),
    "files.read_record(path)": lambda path: files.read_record(path, files.Record),
    "files.write_record(path)": lambda path: files.write_record(path, files.Record()),
    "files.write_arrays(path)": lambda path: files.write_arrays(
        path, {}, files.Record()
    ),
    "files.read_arrays(path)": lambda path: files.read_arrays(path, files.Record),
    "files.read_bounded(path)": lambda path: files.read_bounded(path, "file", 1),
    "sets._Sources.from_folder(root)": ImageSet.from_folder,
    "sets._DataSets.from_torchvision(root)": lambda path: ImageSet.from_torchvision(
        "CIFAR10", path
    ),
    "sets._DataSets.from_split_file(path)": lambda path: ImageSet.from_split_file(
        path, "."
    ),
    "sets.check_classnames(classnames)": sets.check_classnames,
    "sets.read_folder(root)": sets.read_folder,
    "sets.read_frame(root)": lambda path: sets.read_frame(FRAME, root=path),
    "sets._Sources.from_dataframe(root)": lambda path: ImageSet.from_dataframe(
        FRAME, root=path
    ),
    "datatools.to_fiftyone(folder)": lambda path: datatools.to_fiftyone(
        None, [], folder=path
    ),
    "watching.TensorBoard.__init__(logdir)": watching.TensorBoard,
    "compare.run_all(folder)": lambda path: compare.run_all(
        {"a": ZeroShot(None, ["a", "b"])}, ONE, ONE, folder=path
    ),
    "compare.compare(folder)": lambda path: compare.compare(
        {"a": ZeroShot(None, ["a", "b"])}, ONE, ONE, folder=path
    ),
    "robustness.read_imagenet(root)": robustness.read_imagenet,
    "robustness.read_imagenet(wnids)": lambda path: robustness._class_numbers(
        ["n1"], path
    ),
    "adapter.read_saved(directory)": adapter.read_saved,
    "adapter.Saved.save(directory)": lambda path: adapter.Saved.save(FITTED, path),
    "adapter.Saved.load(directory)": ZeroShot.load,
    "export.Exporting.export(path)": lambda path: Exporting.export(FITTED, path),
    "students.ExportedStudents.export(path)": lambda path: CoReg.export(FITTED, path),
    "hub.fetch(name)": hub.fetch,
    "hub.fetch(cache_dir)": lambda path: hub.fetch("me/pets", cache_dir=path),
    "hub.hub_name(name)": hub.hub_name,
    "hub.Sharing.from_pretrained(name)": ZeroShot.from_pretrained,
    "hub.Shared.save_pretrained(save_directory)": lambda path: hub.Shared(
        {}, None
    ).save_pretrained(path),
    "training.Checkpoint.__init__(path)": lambda path: training.Checkpoint(path, {}),
}
MORE = {  # whose annotation says something else
    "load_clip, a folder": lambda path: load_clip(f"local-dir:{path}"),
    "load_clip, weights": lambda path: load_clip("ViT-B-32", path),
    "an image": lambda path: pictures.read_image(path),
    "the header of an image": pictures.check_image,
    "an image of a set": lambda path: ImageSet([path])[0],
    "an image of a table": lambda path: sets.read_frame(
        pd.DataFrame({"image": [path]})
    ),
    "a data set": lambda path: datasets.read_hub(path),
}
ELSEWHERE = {  # a path for a message, or for one of those above
    *("files.explained(location)", "files.parse_record(path)"),
    *("files.check_arrays(path)", "adapter.check_declared(path)"),
    *("files.draft_target(path)", "files.remove_drafts(folder)"),
    "course.course_files(root)",
    *("course.collect(source)", "course.collect(target)"),
    *("captions._Cache.__init__(location)", "features._Files.is_unchanged(file)"),
    *("modelfiles.read_json(source)", "training._Generations.__init__(path)"),
    *("datasets.read_split_file(root)", "sets._DataSets.from_split_file(root)"),
    *("sets._DataSets.from_torchvision(split_file)", "report.report(path)"),
    # for check_classnames
    *("sets.read_folder(classnames)", "sets._Sources.from_folder(classnames)"),
    *("sets.read_frame(classnames)", "sets._Sources.from_dataframe(classnames)"),
}


def takers():
    """All public functions of the package whose annotation says `str | Path`."""
    package = Path(files.__file__).parent.parent
    for path in package.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        module = ast.parse(code if "str | Path" in code else "")
        for owner in (module, *module.body):
            inside = isinstance(owner, ast.ClassDef)
            begin = f"{path.stem}.{owner.name}." if inside else f"{path.stem}."
            for made in owner.body if inside or owner is module else ():
                if not isinstance(made, ast.FunctionDef):
                    continue
                if made.name.startswith("_") and made.name != "__init__":
                    continue
                for given in (*made.args.args, *made.args.kwonlyargs):
                    kind = ast.unparse(given.annotation) if given.annotation else ""
                    if "str | Path" in kind:
                        yield f"{begin}{made.name}({given.arg})"


def test_everything_that_takes_a_path_is_tried_here():
    found = [*takers()]
    assert len(found) > 70 and len(set(found)) == len(found)
    assert {*found} == {*CALLS, *ELSEWHERE}


@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_nobodys_home_is_one_sentence(name):
    with pytest.raises(ValueError, match="no user 'nobody-of-this-name' here") as error:
        (CALLS | MORE)[name](NOBODY)
    assert "\n" not in str(error.value)


@pytest.fixture
def home(tmp_path, monkeypatch, test_images):
    monkeypatch.setenv("HOME", str(tmp_path))
    test_images[0][0].save(tmp_path / "x.png")
    return tmp_path


def test_an_image_at_home_is_read_found_again_and_called_as_it_was(
    clip, home, test_images
):
    near, far = ImageSet(["~/x.png"]), ImageSet([str(home / "x.png")])
    assert np.array_equal(near[0][0], far[0][0])
    assert hash_images(near) == hash_images(far)
    assert _shorter_side(near, 0) == _shorter_side(far, 0)
    assert _as_row(near, 0, None).content == str(home / "x.png")
    stored = StoredCLIP(clip, FeatureStore("~/store"))
    method = ZeroShot(stored, test_images.classnames).fit(near)
    answers = method.predict_proba(["~/x.png"])
    assert np.array_equal(method.predict_proba([home / "x.png"]), answers)
    assert predictions(method, near, answers).image.tolist() == ["~/x.png"]
    assert (home / "store").is_dir()
    method.save("~/pets")
    assert np.array_equal(
        ZeroShot.load("~/pets", clip).predict(near), [answers.argmax()]
    )


def test_a_folder_of_that_name_is_found_where_it_is(home, monkeypatch):
    (home / "here" / "~").mkdir(parents=True)
    (home / "x.png").rename(home / "here" / "~" / "y.png")
    monkeypatch.chdir(home / "here")
    assert ImageSet.from_folder(".")[0][0].size


def test_one_class_is_said(clip):
    with pytest.warns(UserWarning, match="there is one class only, 'cat', which every"):
        ZeroShot(clip, ["cat"]).fit(ONE)


def test_a_file_of_a_table_may_be_called_so(tmp_path, test_images):
    for name in ("~draft.png", "~nobody.png"):
        test_images[0][0].save(tmp_path / name)
    frame = pd.DataFrame({"image": ["~draft.png", "~nobody.png"]})
    found = ImageSet.from_dataframe(frame, root=tmp_path)
    assert [Path(each).name for each in found.images] == [*frame.image]
