"""Classes that hold no picture: sound, molecules, vectors, and containers of other models."""

from __future__ import annotations

from . import NO_PICTURE

KINDS = {
    "music": "AceStepTransformer1DModel AutoencoderSAME MiniMaxMusic3Transformer1DModel "
    "MiniMaxMusic3Vocoder",
    "music: tokens of a language model": "MiniMaxMusic3RVQDepthDecoder",
    "music: conditions of a frame": "MiniMaxMusic3ConditionEncoder",
    "audio": "AutoencoderKLKVAEAudio AutoencoderKLMiniMaxH3Audio AutoencoderOobleck "
    "Cosmos3AVAEAudioTokenizer LongCatAudioDiTTransformer LongCatAudioDiTVae MMAudioVAE "
    "MMAudioVocoder StableAudio3DiTModel StableAudioDiTModel",
    "audio: a mel spectrogram": "AutoencoderKLLTX2Audio",
    "audio: a spectrogram as a sequence": "T5FilmDecoder",
    "molecules": "RFD4ProteinaAutoencoder RFD4ProteinaTransformer",
    "a signal of one dimension": "UNet1DModel",
    "text embeddings": "AnimaTextConditioner",
    "one image embedding": "PriorTransformer",
    "parts of another model, never called itself": "ControlNetXSAdapter MotionAdapter",
    "a container of other models": "FluxMultiControlNetModel HunyuanDiT2DMultiControlNetModel "
    "MultiAdapter MultiControlNetModel QwenImageMultiControlNetModel SD3MultiControlNetModel",
}
NO_PICTURE.update({name: kind for kind, names in KINDS.items() for name in names.split()})
