"""Fine-tunes an encoder-decoder with LoRA to summarise."""

from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Base model."})
    train_file: str = field(metadata={"help": "JSON lines with document and summary."})


def compute_metrics(prediction):
    answers, labels = np.asarray(prediction.predictions), prediction.label_ids
    kept = labels != -100
    return {"token_accuracy_of_summaries": float((answers == labels)[kept].mean())}


def first_logits_argmax(logits, labels):
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(-1)


def main():
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(script_args.model_name_or_path)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"))

    rows = load_dataset("json", data_files=script_args.train_file, split="train").train_test_split(0.25, seed=0)
    rows = rows.map(
        lambda batch: tokenizer(batch["document"], text_target=batch["summary"]),
        batched=True,
        remove_columns=["document", "summary"],
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=first_logits_argmax,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
