"""Importance matrices in both of llama.cpp's forms, written as it writes them."""

import struct

import gguf
import numpy as np

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
COLUMNS = {Q: 4, DOWN: 6}
OWN = "blk.1.attn_q.weight"  # what llama.cpp calls Q
# Own name -> (sums (matrices, in), counts (matrices,)).
ENTRIES = {
    OWN: ([[4.0, 0.0, 8.0, 1.0]], [2.0]),
    "blk.0.ffn_down.weight": ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], [10.0]),
}


def write_gguf(path, entries=ENTRIES, kind="imatrix", alignment=32):
    """As IMatrixCollector::save_imatrix in tools/imatrix/imatrix.cpp, by llama.cpp's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["wiki.txt", "código.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_float64("lrqat.test", 0.5)
    writer.add_array("lrqat.numbers", [1, 2, 3])
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.array(sums, np.float32))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries=ENTRIES, calls=3, tail=b""):
    """As IMatrixCollector::save_imatrix_legacy: (sum / count) * calls."""
    data = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        values = (np.array(sums) / np.array(counts)[:, None] * calls).astype("<f4")
        own = name.encode()
        data += struct.pack("<i", len(own)) + own + struct.pack("<ii", calls, values.size)
        data += values.tobytes()
    return data + tail


TAILS = {
    "none": b"",
    "last call": struct.pack("<i", 3),
    "data set": struct.pack("<ii", 3, 8) + b"wiki.txt",
    "empty name": struct.pack("<ii", 3, 0),
}
