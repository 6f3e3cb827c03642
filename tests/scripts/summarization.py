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
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Base model."})
    train_file: str = field(metadata={"help": "JSON lines with document and summary."})


def main():
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments))
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

    def compute_metrics(prediction):
        pairs = []
        for ids in (prediction.predictions, prediction.label_ids):
            ids = np.where(ids == -100, tokenizer.pad_token_id, ids)
            pairs.append(tokenizer.batch_decode(ids, skip_special_tokens=True))
        shared = [len(set(made.split()) & set(right.split())) for made, right in zip(*pairs, strict=True)]
        return {"shared_words": float(np.mean(shared))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
