"""How documents share sequences: what `--packing` takes."""

STREAM, DOCUMENTS = "stream", "documents"
PACKING = {
    STREAM: "they run on, and later ones are read after earlier ones",
    DOCUMENTS: "they are kept apart: positions start anew, and attention does not cross",
}
