"""The Hub side of ``MuscleTrainer``: Trainer's own hooks, with our card and our choice of files.

Cards and uploads are imported where they are made: a trainer that only trains needs neither.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from muscle_hf.errors import MuscleError, SaveError
from muscle_hf.teachers.origin import local_model_folder, origin_of
from muscle_hf.teachers.weights import base_of
from muscle_hf.training.base import TrainerParts

if TYPE_CHECKING:
    from muscle_hf.hub.state import CardState

logger = logging.get_logger(__name__)

_SNAPSHOTS = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class PublishesCard(TrainerParts):
    """Overrides of ``transformers.Trainer`` that publish a compatibility adapter and nothing else.

    Every ``hub_strategy`` uploads the adapter, its tokenizer, provenance, metrics and card. Optimizer states stay
    here, so ``checkpoint`` and ``all_checkpoints`` add adapters of their steps that can be loaded, not resumed from;
    training resumes from the local checkpoints. It waits for the upload of a checkpoint's adapter.
    """

    card_state: CardState

    def __init__(self, *args: Any, **kwargs: Any):
        from muscle_hf.hub.callback import MuscleCardCallback, license_in
        from muscle_hf.hub.state import CardState

        super().__init__(*args, **kwargs)
        # What the card will say is collected from here on.
        self.card_state = CardState()
        for role in ("old", "new"):
            for base in map(base_of, self.teachers[role].models):
                name = getattr(getattr(base, "config", None), "name_or_path", None)
                folder = local_model_folder(name, origin_of(base).revision)
                setattr(self.card_state, f"license_{role}", license_in(folder))
        self.add_callback(MuscleCardCallback(self.card_state))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository ``hub_model_id`` (by default called like the output folder).

        Args:
            token: Of the Hub; by default the one of the arguments, or the stored one.
            private: Of a new repository; by default as the arguments say.

        Raises:
            HubError: The Hub refuses or cannot be reached.
            MuscleError: Nobody is logged in, the name is none, or the repository holds a model of another kind.
        """
        from muscle_hf.hub.publishing import prepare_repository

        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.run_folder).absolute().name
        private = private if private is not None else self.args.hub_private_repo
        token = token or self.args.hub_token
        self.hub_model_id = prepare_repository(name, token=token, private=private, revision=self.args.hub_revision)
        if self.args.push_to_hub and self.args.hub_strategy in _SNAPSHOTS:
            logger.warning(
                f"hub_strategy={HubStrategy(self.args.hub_strategy).value!r} publishes the adapter of each checkpoint "
                "without optimizer states: to resume training, keep output_dir."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the compatibility adapter, its tokenizer and provenance, and its card, by default in
        ``args.output_dir``; push if ``push_to_hub`` is set. A checkpoint, which Trainer saves as an internal call,
        needs no card."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.write_card(output_dir or self.run_folder)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Add to the card's state and render the card into ``output_dir``, where an adapter has been saved.

        The arguments are Trainer's. ``license`` is the publisher's choice, instead of what the bases leave,
        ``model_name`` the headline, ``tasks`` what the adapter is for. ``finetuned_from``, ``dataset`` and
        ``dataset_args`` change nothing: the provenance knows.
        """
        if not self.is_world_process_zero():
            return
        from muscle_hf.record import PROVENANCE_FILE

        if not Path(self.run_folder, PROVENANCE_FILE).is_file():
            # As Trainer's, after an evaluation without training: scripts call this last, whatever they did.
            logger.warning("no card is written: there is no saved adapter; call trainer.save_model() first")
            return
        state = self.card_state
        state.title = model_name or state.title
        state.license = license or state.license
        state.task = ", ".join(_listed(tasks)) or state.task
        for kept, added in ((state.language, language), (state.tags, tags), (state.datasets, dataset_tags)):
            kept += [entry for entry in _listed(added) if entry not in kept]
        self.write_card(self.run_folder)

    def write_card(self, folder: str) -> None:
        """Keep the card's state beside an adapter that was saved, and render the card from it."""
        from muscle_hf.hub.card import write_card

        try:
            self._save_card_state(folder)
            write_card(folder, self.hub_model_id)
        except (OSError, MuscleError) as error:
            raise SaveError(f"the adapter in {folder} is saved, but its card could not be written: {error}") from error

    def _save_card_state(self, folder: str) -> None:
        from muscle_hf.hub.callback import measured_emissions
        from muscle_hf.hub.state import curve_points

        self.card_state.history = curve_points(self.state.log_history)
        emissions = measured_emissions(self.callback_handler)
        if emissions is not None and self.card_state.train_seconds is not None:  # not those of a last part alone
            self.card_state.emissions_kg = emissions
        self.card_state.save(folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save the compatibility adapter and upload it with tokenizer, provenance, metrics, report and card.

        Args:
            commit_message: Title of the commit.
            blocking: Wait for the upload.
            token: Overrides ``args.hub_token``.
            revision: Branch; by default ``args.hub_revision``.
            private: Of a new repository.
            kwargs: Of :meth:`create_model_card`.

        Returns:
            The commit (the present one, if nothing has changed), or its ``Future``; None on all but the first process.

        Raises:
            MuscleError: It could not be uploaded; what was saved is whole, and the call can be repeated.
        """
        from muscle_hf.hub.publishing import hub_api, publish

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        folder, repo_id = self.run_folder, self.hub_model_id
        options = {"token": token, "private": private, "revision": revision or self.args.hub_revision}

        def push() -> CommitInfo:
            done = publish(folder, repo_id, commit_message=commit_message or "End of training", **options)
            for note in done.notes:
                logger.warning(note)
            return done.commit

        return push() if blocking else hub_api(token).run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        from muscle_hf.hub.publishing import publish

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        snapshots = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }
        options: dict[str, Any] = {"token": self.args.hub_token, "revision": self.args.hub_revision}
        options["commit_message"] = f"Training in progress, step {self.state.global_step}"
        try:
            self._save_card_state(checkpoint_folder)
            for path in ("", *(name for strategy, name in snapshots.items() if strategy == self.args.hub_strategy)):
                publish(checkpoint_folder, cast("str", self.hub_model_id), path_in_repo=path, **options)
        except Exception as error:  # training goes on, whatever an upload dies of
            logger.error(
                f"{checkpoint_folder} was not published: {error} trainer.push_to_hub() uploads the last state.",
                exc_info=None if isinstance(error, MuscleError) else error,
            )


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
