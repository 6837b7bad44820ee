from lrqat.training.plots import plot_training

HISTORY = [{"step": 1, "loss": 2.0, "changed": 0.1}, {"step": 2, "loss": 1.5, "changed": 0.2}]


def test_the_name_of_a_model_is_a_title_and_no_formula(tmp_path):
    plot_training(HISTORY, tmp_path / "a.png", r"$\nosuchsymbol$, q4_0")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_step_there_is_no_picture(tmp_path):
    plot_training([], tmp_path / "a.png", "a model, q4_0")
    assert not list(tmp_path.iterdir())
