"""What to do with an adapter that is not merged here."""

INSTEAD = (
    "merge it with peft (merge_and_unload, save_pretrained) and give the merged folder to --model"
)
