"""How ONNX Runtime and OpenVINO are set wherever they run a model. Imports neither before it is used, nor torch."""

from typing import Any


def onnx_options(threads: int) -> Any:
    """``onnxruntime.SessionOptions`` for models of the BERT family on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Residual and layer norm fused to one operator run slower than one by one: 1.5 times in all for a small model.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    return options


def openvino_options(threads: int) -> dict[str, Any]:
    """Options to compile a model with; at its own choice OpenVINO computes in bf16 where the processor can."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
