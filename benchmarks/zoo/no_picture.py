"""Classes that hold no picture: sound, molecules, vectors, and containers of other models."""

from __future__ import annotations

from . import NO_PICTURE

NO_PICTURE.update(
    {
        # transformers
        "AceStepTransformer1DModel": "music",
        "LongCatAudioDiTTransformer": "audio",
        "MiniMaxMusic3RVQDepthDecoder": "music: tokens of a language model",
        "MiniMaxMusic3Transformer1DModel": "music",
        "RFD4ProteinaTransformer": "molecules",
        "StableAudio3DiTModel": "audio",
        "StableAudioDiTModel": "audio",
        "T5FilmDecoder": "audio: a spectrogram as a sequence",
        "UNet1DModel": "a signal of one dimension",
        # embeddings
        "AnimaTextConditioner": "text embeddings",
        "MiniMaxMusic3ConditionEncoder": "music: conditions of a frame",
        "PriorTransformer": "one image embedding",
        # autoencoders and vocoders
        "AutoencoderKLKVAEAudio": "audio",
        "AutoencoderKLLTX2Audio": "audio: a mel spectrogram",
        "AutoencoderKLMiniMaxH3Audio": "audio",
        "AutoencoderOobleck": "audio",
        "AutoencoderSAME": "music",
        "Cosmos3AVAEAudioTokenizer": "audio",
        "LongCatAudioDiTVae": "audio",
        "MMAudioVAE": "audio",
        "MMAudioVocoder": "audio",
        "MiniMaxMusic3Vocoder": "music",
        "RFD4ProteinaAutoencoder": "molecules",
        # no computation of their own
        "ControlNetXSAdapter": "parts of another model, never called itself",
        "FluxMultiControlNetModel": "a container of other models",
        "HunyuanDiT2DMultiControlNetModel": "a container of other models",
        "MotionAdapter": "parts of another model, never called itself",
        "MultiAdapter": "a container of other models",
        "MultiControlNetModel": "a container of other models",
        "QwenImageMultiControlNetModel": "a container of other models",
        "SD3MultiControlNetModel": "a container of other models",
    }
)
