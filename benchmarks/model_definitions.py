"""Tiny models of many libraries with random weights: nothing is downloaded.

`SUBJECTS` maps "library:name" to a function that builds one. A library that is not installed is an
ImportError of that function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 10


class Subject(NamedTuple):
    """A model and how it is trained.

    example: as of `apical.convert`. output: the output that carries the error of broadcast rules,
    where there are several. language: whether it predicts at every position.
    """

    model: nn.Module
    example: Any
    output: Any = None
    language: bool = False


def loss(returned: Any) -> Tensor:
    """The mean square of all that can receive a gradient: defined for every model, and for one
    with a softmax or a norm at its end not constant."""
    parts = [part for part in _tensors(returned) if part.requires_grad and part.dim()]
    weighted = [
        (part.float() - torch.linspace(-1, 1, part.numel()).view(part.shape)).square().mean()
        for part in parts[:1]
    ]
    return torch.stack(weighted).sum()


def _tensors(returned: Any) -> Iterator[Tensor]:
    if isinstance(returned, Tensor):
        yield returned
    elif isinstance(returned, Mapping):
        for part in returned.values():
            yield from _tensors(part)
    elif isinstance(returned, list | tuple):
        for part in returned:
            yield from _tensors(part)
    elif hasattr(returned, "__dict__"):
        yield from _tensors(list(vars(returned).values()))


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(*shape: int, below: int = 60) -> Tensor:
    return torch.randint(2, below, shape, generator=torch.Generator().manual_seed(0))


# ---- transformers ------------------------------------------------------------------------------

_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
    "num_labels": 10, "type_vocab_size": 2, "embedding_size": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
}  # fmt: skip
_VISION = {"image_size": 32, "patch_size": 8, "num_channels": 3}


def hf(
    config: str, model: str, example: Callable[[], dict[str, Tensor]], **options: Any
) -> Subject:
    import transformers

    kind = getattr(transformers, config)
    settings = {**_SMALL, **_VISION, **options}
    built = getattr(transformers, model)(kind(**settings))
    language = model.endswith(
        ("CausalLM", "MaskedLM", "LMHeadModel", "ConditionalGeneration", "MTModel")
    )
    scores = any(part in model for part in ("For", "Head", "MTModel"))
    first = "logits" if scores else "last_hidden_state"
    return Subject(built, example(), output=options.get("output", first), language=language)


def text() -> dict[str, Tensor]:
    return {"input_ids": tokens(2, 8)}


def pair() -> dict[str, Tensor]:
    return {"input_ids": tokens(2, 8), "decoder_input_ids": tokens(2, 8)}


def pixels(size: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": seeded(2, 3, size, size)}


def waves(length: int = 1600) -> dict[str, Tensor]:
    return {"input_values": seeded(2, length)}


_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}  # fmt: skip
_WAVES = {
    "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
}  # fmt: skip


def _transformers() -> dict[str, Callable[[], Subject]]:
    found: dict[str, Callable[[], Subject]] = {}

    def add(name: str, model: str, example: Any, /, **options: Any) -> None:
        found[f"transformers:{model}"] = partial(hf, f"{name}Config", model, example, **options)

    for name in (
        "Bert", "Roberta", "Albert", "Electra", "MPNet", "XLMRoberta", "Camembert", "DebertaV2",
        "Nystromformer", "RoFormer", "ConvBert", "Data2VecText", "FNet",
        "MegatronBert", "RemBert", "IBert", "Ernie", "BigBird", "ModernBert",
    ):  # fmt: skip
        add(name, f"{name}ForSequenceClassification", text)
    add("DistilBert", "DistilBertForSequenceClassification", text, dim=32, n_layers=2, n_heads=4, hidden_dim=48)  # fmt: skip
    add("Bert", "BertForMaskedLM", text)
    for name in (
        "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi", "Phi3", "StableLm", "Olmo",
        "Olmo2", "Granite", "Cohere", "Starcoder2", "Persimmon", "GPTNeoX", "OPT", "BioGpt", "Helium",
        "Glm", "Nemotron", "Ernie4_5", "SmolLM3",
    ):  # fmt: skip
        model = {"OPT": "OPTForCausalLM"}.get(name, f"{name}ForCausalLM")
        add(name, model, text, head_dim=8, word_embed_proj_dim=32, ffn_dim=48)
    add("GPT2", "GPT2LMHeadModel", text, **_GPT)
    add("OpenAIGPT", "OpenAIGPTLMHeadModel", text, **_GPT)
    add("GPTJ", "GPTJForCausalLM", text, rotary_dim=4, **_GPT)
    add("GPTBigCode", "GPTBigCodeForCausalLM", text, **_GPT)
    add("CodeGen", "CodeGenForCausalLM", text, rotary_dim=4, **_GPT)
    add("GPTNeo", "GPTNeoForCausalLM", text, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])  # fmt: skip
    add("Bloom", "BloomForCausalLM", text, n_layer=2, n_head=4)
    add("Falcon", "FalconForCausalLM", text)
    add("Mpt", "MptForCausalLM", text, d_model=32, n_heads=4, n_layers=2)
    add("Mamba", "MambaForCausalLM", text, state_size=4)
    add("CTRL", "CTRLLMHeadModel", text, dff=48, **_GPT)
    add("XGLM", "XGLMForCausalLM", text, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)
    for name in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe"):
        add(name, f"{name}ForCausalLM", text, head_dim=8, **_MOE)
    add("T5", "T5ForConditionalGeneration", pair, decoder_start_token_id=0, **_T5)
    add("MT5", "MT5ForConditionalGeneration", pair, decoder_start_token_id=0, **_T5)
    add("Bart", "BartForConditionalGeneration", pair, **_BART)
    add("MBart", "MBartForConditionalGeneration", pair, **_BART)
    add("Pegasus", "PegasusForConditionalGeneration", pair, **_BART)
    add("Marian", "MarianMTModel", pair, **_BART)
    add("BlenderbotSmall", "BlenderbotSmallForConditionalGeneration", pair, **_BART)
    add("M2M100", "M2M100ForConditionalGeneration", pair, **_BART)
    add("Whisper", "WhisperForConditionalGeneration", lambda: {"input_features": seeded(2, 8, 16), "decoder_input_ids": tokens(2, 8)}, num_mel_bins=8, max_source_positions=8, max_target_positions=16, **_BART)  # fmt: skip
    for name in (
        "ViT",
        "DeiT",
        "Beit",
        "Dinov2",
        "ViTMSN",
        "Data2VecVision",
        "Dinov2WithRegisters",
    ):
        add(name, f"{name}ForImageClassification", pixels)
    for name in ("ResNet", "ConvNext", "ConvNextV2"):
        add(name, f"{name}ForImageClassification", pixels, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=4, layer_type="basic")  # fmt: skip
    add("PoolFormer", "PoolFormerForImageClassification", lambda: pixels(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], patch_size=[7, 3, 3, 3])  # fmt: skip
    add("Segformer", "SegformerForSemanticSegmentation", lambda: pixels(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, patch_sizes=[7, 3, 3, 3])  # fmt: skip
    add("MobileNetV2", "MobileNetV2ForImageClassification", pixels, depth_multiplier=0.35)
    add("MobileViT", "MobileViTForImageClassification", lambda: pixels(64), image_size=64, patch_size=2, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 64])  # fmt: skip
    add("Levit", "LevitForImageClassification", lambda: pixels(64), image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8], patch_size=16)  # fmt: skip
    add("PvtV2", "PvtV2ForImageClassification", lambda: pixels(64), image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4], patch_sizes=[7, 3, 3, 3])  # fmt: skip
    add("CLIPVision", "CLIPVisionModel", pixels)
    add("SiglipVision", "SiglipVisionModel", pixels)
    for name in ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech"):
        add(name, f"{name}ForSequenceClassification", waves, mask_time_prob=0.0, apply_spec_augment=False, num_attention_heads=4, **_WAVES)  # fmt: skip
    add("AST", "ASTForAudioClassification", lambda: {"input_values": seeded(2, 24, 16)}, num_mel_bins=16, max_length=24, patch_size=8, frequency_stride=8, time_stride=8)  # fmt: skip
    add("PatchTST", "PatchTSTForClassification", lambda: {"past_values": seeded(2, 32, 3)}, num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=16, ffn_dim=32, num_targets=10, output="prediction_logits")  # fmt: skip
    add("PatchTSMixer", "PatchTSMixerForTimeSeriesClassification", lambda: {"past_values": seeded(2, 32, 3)}, num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=16, num_targets=10, output="prediction_outputs")  # fmt: skip
    return found


# ---- images: timm, torchvision, segmentation-models-pytorch, monai, open_clip, x-transformers ---


def _timm(name: str, size: int) -> Subject:
    import timm

    options = {"img_size": size} if "vit" in name or "swin" in name else {}
    return Subject(
        timm.create_model(name, num_classes=CLASSES, **options), seeded(2, 3, size, size)
    )


def _torchvision(name: str, size: int) -> Subject:
    from torchvision import models

    output = None
    options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if "segmentation" in name:
        options |= {"weights_backbone": None}
        output = "out"
    if name == "googlenet":
        options |= {"init_weights": False, "aux_logits": False}
    kind = models.get_model_builder(name.removeprefix("segmentation:"))
    return Subject(kind(**options), seeded(2, 3, size, size), output=output)


def _smp(name: str) -> Subject:
    import segmentation_models_pytorch as smp

    options: dict[str, Any] = {
        "encoder_name": "mobilenet_v2",
        "encoder_weights": None,
        "classes": 2,
    }
    if name in ("Unet", "UnetPlusPlus", "MAnet"):
        options |= {"decoder_channels": (16, 16, 8, 8, 8)}
    return Subject(getattr(smp, name)(**options), seeded(2, 3, 64, 64))


def _monai(name: str) -> Subject:
    from monai.networks import nets

    flat = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    options: dict[str, dict[str, Any]] = {
        "UNet": flat | {"channels": (4, 8, 16), "strides": (2, 2)},
        "BasicUNet": flat | {"features": (8, 8, 8, 16, 16, 8)},
        "AttentionUnet": flat | {"channels": (4, 8, 16), "strides": (2, 2)},
        "SegResNet": flat | {"init_filters": 8},
        "VNet": flat,
        "DenseNet": flat | {"init_features": 8, "growth_rate": 4, "block_config": (1, 1)},
        "HighResNet": flat,
        "DynUNet": flat
        | {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]},
        "ViT": {"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 32, "mlp_dim": 48, "num_layers": 2, "num_heads": 4, "spatial_dims": 2, "classification": True},
        "UNETR": flat | {"img_size": 32, "feature_size": 4, "hidden_size": 32, "mlp_dim": 48, "num_heads": 4},
        "SENet154": {"spatial_dims": 2, "in_channels": 1, "num_classes": 10, "layers": (1, 1, 1, 1)},
        "AutoEncoder": flat | {"channels": (4, 8), "strides": (2, 2)},
    }  # fmt: skip
    return Subject(getattr(nets, name)(**options[name]), seeded(2, 1, 32, 32))


def _open_clip(part: str) -> Subject:
    import open_clip

    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2},
    )
    if part == "vision":
        return Subject(model.visual, seeded(2, 3, 32, 32))
    return Subject(model, (seeded(2, 3, 32, 32), tokens(2, 8)), output=[0, 1])


def _x_transformers(**options: Any) -> Subject:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    model = TransformerWrapper(num_tokens=64, max_seq_len=16, attn_layers=layers)
    return Subject(model, tokens(2, 8), language=True)


# ---- diffusers ---------------------------------------------------------------------------------


def _diffusers(name: str) -> Subject:
    import diffusers

    image, time = seeded(2, 4, 16, 16), torch.tensor([3, 7])
    tiny = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    dit = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 16, "patch_size": 2}  # fmt: skip
    unet = {"in_channels": 4, "out_channels": 4, "layers_per_block": 1}
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "UNet2DModel": (
            unet | tiny | {"down_block_types": down, "up_block_types": up},
            {"sample": image, "timestep": time},
        ),
        "UNet2DConditionModel": (
            unet | tiny | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4},
            {"sample": image, "timestep": time, "encoder_hidden_states": seeded(2, 5, 16)},
        ),
        "AutoencoderKL": (
            {"in_channels": 4, "out_channels": 4, "latent_channels": 2, **tiny, **sides},
            {"sample": image},
        ),
        "VQModel": (
            {"in_channels": 4, "out_channels": 4, "latent_channels": 2, "num_vq_embeddings": 8, **tiny, **sides},
            {"sample": image},
        ),
        "AutoencoderTiny": (
            {"in_channels": 4, "out_channels": 4, "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 2},
            {"sample": image},
        ),
        "DiTTransformer2DModel": (
            dit | {"num_embeds_ada_norm": 10},
            {"hidden_states": image, "timestep": time, "class_labels": torch.tensor([1, 2])},
        ),
        "PriorTransformer": (
            {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 16, "num_embeddings": 5, "additional_embeddings": 4},
            {"hidden_states": seeded(2, 16), "timestep": time, "proj_embedding": seeded(2, 16), "encoder_hidden_states": seeded(2, 5, 16)},
        ),
        "SD3Transformer2DModel": (
            dit | {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 8, "out_channels": 4, "pos_embed_max_size": 16},
            {"hidden_states": image, "timestep": time, "encoder_hidden_states": seeded(2, 5, 16), "pooled_projections": seeded(2, 8)},
        ),
        "PixArtTransformer2DModel": (
            dit | {"num_embeds_ada_norm": 10, "caption_channels": 16, "cross_attention_dim": 16},
            {"hidden_states": image, "timestep": time, "encoder_hidden_states": seeded(2, 5, 16), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        ),
    }  # fmt: skip
    options, example = cases[name]
    kind = getattr(diffusers, name)
    outputs = {"VQModel": "sample", "PriorTransformer": "predicted_image_embedding"}
    return Subject(kind(**options), example, output=outputs.get(name, "sample"))


# ---- spikes ------------------------------------------------------------------------------------


class Steps(nn.Module):
    """A spiking layer stack over time: (T, N, inputs) -> mean over time of the readout."""

    def __init__(self, layers: nn.ModuleList, stateful: bool) -> None:
        super().__init__()
        self.layers, self.stateful = layers, stateful

    def forward(self, x_TNF: Tensor) -> Tensor:
        states: list[Any] = [None] * len(self.layers)
        total = torch.zeros(())
        for x in x_TNF:
            for place, layer in enumerate(self.layers):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    x = layer(x)
                else:
                    x, *state = layer(x, *(states[place] or ()))
                    states[place] = state
            total = total + x
        return total / len(x_TNF)


def _snntorch(kind: str) -> Subject:
    import snntorch as snn

    options = {"RLeaky": {"linear_features": 16}, "RSynaptic": {"linear_features": 16}}.get(
        kind, {}
    )
    if kind in ("Synaptic", "RSynaptic"):
        options |= {"alpha": 0.9}
    if kind == "SLSTM":
        cell: nn.Module = snn.SLSTM(16, 16)
    else:
        cell = getattr(snn, kind)(beta=0.9, **options)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell, self.last = nn.Linear(12, 16), cell, nn.Linear(16, CLASSES)

        def forward(self, x_TNF: Tensor) -> Tensor:
            make = "init_slstm" if kind == "SLSTM" else "reset_mem"
            state: Any = getattr(self.cell, make)()
            state = list(state) if isinstance(state, tuple) else [state]
            total = torch.zeros(())
            for x in x_TNF:
                spikes, *state = self.cell(self.first(2 * x), *state)
                total = total + self.last(spikes)
            return total / len(x_TNF)

    return Subject(Net(), seeded(4, 2, 12))


def _norse(kind: str) -> Subject:
    import norse.torch as norse

    recurrent = {"LIFRecurrent", "LSNNRecurrent"}
    cell = getattr(norse, kind)(16, 16) if kind in recurrent else getattr(norse, kind)()
    model = norse.SequentialState(nn.Linear(12, 16), cell, nn.Linear(16, CLASSES))
    return Subject(model, 3 * seeded(4, 2, 12), output=0)


def _spikingjelly(kind: str) -> Subject:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet, spiking_vgg

    if kind == "layers":
        model: nn.Module = nn.Sequential(
            layer.Linear(12, 16), neuron.LIFNode(surrogate_function=surrogate.ATan()),
            layer.Linear(16, CLASSES),
        )  # fmt: skip
        example = seeded(2, 12)
    elif kind == "torch layers":
        model = nn.Sequential(nn.Linear(12, 16), neuron.ParametricLIFNode(), nn.Linear(16, CLASSES))
        example = seeded(2, 12)
    elif kind == "sew_resnet":
        model = sew_resnet.sew_resnet18(
            num_classes=CLASSES, cnf="ADD", spiking_neuron=neuron.IFNode,
            surrogate_function=surrogate.ATan(), detach_reset=True,
        )  # fmt: skip
        example = seeded(2, 3, 32, 32)
    else:
        model = spiking_vgg.spiking_vgg11(spiking_neuron=neuron.IFNode, num_classes=CLASSES)
        example = seeded(2, 3, 32, 32)
    model.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return Subject(model, example)


# ---- graphs, sound, adapters, torch itself -----------------------------------------------------


def _graph(kind: str) -> Subject:
    from torch_geometric import nn as graph

    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
    options: dict[str, Any] = {"in_channels": 8, "hidden_channels": 16, "num_layers": 2, "out_channels": CLASSES}  # fmt: skip
    if kind in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN"):
        return Subject(getattr(graph, kind)(**options), (seeded(6, 8), edges))
    more: dict[str, dict[str, Any]] = {
        "ChebConv": {"K": 2}, "TAGConv": {}, "SGConv": {}, "GraphConv": {}, "ARMAConv": {},
        "TransformerConv": {}, "LEConv": {}, "ClusterGCNConv": {},
    }  # fmt: skip
    kinds = getattr(graph, kind)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = kinds(8, 16, **more[kind]), kinds(16, CLASSES, **more[kind])

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x, edges)), edges)

    return Subject(Net(), (seeded(6, 8), edges))


def _torchaudio(name: str) -> Subject:
    from torchaudio import models

    cases: dict[str, Callable[[], Subject]] = {
        "Wav2Letter": lambda: Subject(
            models.Wav2Letter(num_classes=CLASSES, input_type="mfcc", num_features=8), seeded(2, 8, 200)
        ),
        "DeepSpeech": lambda: Subject(
            models.DeepSpeech(n_feature=8, n_hidden=16, n_class=CLASSES), seeded(2, 1, 12, 8)
        ),
        "ConvTasNet": lambda: Subject(
            models.ConvTasNet(num_sources=2, enc_kernel_size=8, enc_num_feats=16, msk_kernel_size=3, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=2, msk_num_stacks=1),
            seeded(2, 1, 64),
        ),
        "Conformer": lambda: Subject(
            models.Conformer(input_dim=16, num_heads=2, ffn_dim=32, num_layers=1, depthwise_conv_kernel_size=3),
            (seeded(2, 9, 16), torch.tensor([9, 9])), output=0,
        ),
        "Emformer": lambda: Subject(
            models.Emformer(input_dim=16, num_heads=2, ffn_dim=32, num_layers=1, segment_length=4, right_context_length=1),
            (seeded(2, 9, 16), torch.tensor([8, 8])), output=0,
        ),
        "HDemucs": lambda: Subject(
            models.HDemucs(sources=["a", "b"], audio_channels=1, channels=4, depth=2, nfft=64),
            seeded(2, 1, 512),
        ),
    }  # fmt: skip
    return cases[name]()


def _peft(base: str, **options: Any) -> Subject:
    import peft

    of = {"llama": "transformers:LlamaForCausalLM", "bert": "transformers:BertForSequenceClassification"}  # fmt: skip
    subject = SUBJECTS[of[base]]()
    targets = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}[base]
    kind = getattr(peft, options.pop("kind"))
    config = kind(target_modules=targets, **options)
    return subject._replace(model=peft.get_peft_model(subject.model, config))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.recurrent = kind(8, 16, batch_first=True, **options)
        self.last = nn.Linear(32 if options.get("bidirectional") else 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.recurrent(x)[0][:, -1])


def _seq2seq() -> Subject:
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
    return Subject(model, (seeded(2, 6, 16), seeded(2, 6, 16)))


def _bilinear() -> Subject:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 6), nn.Bilinear(6, 8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)), x)

    return Subject(Net(), seeded(4, 8))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    **_transformers(),
    **{
        f"timm:{name}": partial(_timm, name, size)
        for name, size in {
            "test_vit": 32, "test_vit2": 32, "test_resnet": 32, "test_efficientnet": 32,
            "test_convnext": 32, "test_nfnet": 32, "test_byobnet": 32, "test_mambaout": 32,
            "convnext_atto": 32, "ghostnet_050": 32, "lcnet_050": 32, "mixer_s32_224": 224,
            "mobilenetv4_conv_small": 32, "mobilevit_xxs": 64, "repghostnet_050": 32,
            "resnet10t": 32, "starnet_s1": 32, "swin_tiny_patch4_window7_224": 56,
            "xcit_nano_12_p16_224": 64, "levit_128s": 224,
        }.items()
    },
    **{
        f"torchvision:{name}": partial(_torchvision, name, size)
        for name, size in {
            "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "resnet18": 32,
            "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "efficientnet_b0": 32, "googlenet": 64,
            "regnet_y_400mf": 32, "segmentation:lraspp_mobilenet_v3_large": 64,
            "segmentation:deeplabv3_mobilenet_v3_large": 64,
        }.items()
    },
    **{
        f"segmentation_models_pytorch:{name}": partial(_smp, name)
        for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3",
                     "DeepLabV3Plus", "PAN", "UPerNet", "Segformer")
    },
    **{
        f"monai:{name}": partial(_monai, name)
        for name in ("UNet", "BasicUNet", "AttentionUnet", "SegResNet", "VNet", "DenseNet",
                     "HighResNet", "DynUNet", "ViT", "UNETR", "AutoEncoder")
    },
    "open_clip:vision": partial(_open_clip, "vision"),
    "open_clip:CLIP": partial(_open_clip, "both"),
    "x_transformers:plain": _x_transformers,
    "x_transformers:rotary, glu": partial(_x_transformers, rotary_pos_emb=True, ff_glu=True),
    "x_transformers:rmsnorm, one kv head": partial(_x_transformers, use_rmsnorm=True, attn_one_kv_head=True),
    **{
        f"diffusers:{name}": partial(_diffusers, name)
        for name in ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL",
                     "VQModel", "AutoencoderTiny", "DiTTransformer2DModel", "PriorTransformer",
                     "SD3Transformer2DModel", "PixArtTransformer2DModel")
    },
    **{
        f"snntorch:{kind}": partial(_snntorch, kind)
        for kind in ("Leaky", "Synaptic", "RLeaky", "RSynaptic", "Lapicque", "SLSTM")
    },
    **{
        f"norse:{kind}": partial(_norse, kind)
        for kind in ("LIF", "LI", "LIFRecurrent", "LSNN", "LSNNRecurrent")
    },
    **{
        f"spikingjelly:{kind}": partial(_spikingjelly, kind)
        for kind in ("layers", "torch layers", "sew_resnet", "spiking_vgg")
    },
    **{
        f"torch_geometric:{kind}": partial(_graph, kind)
        for kind in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN", "ChebConv", "TAGConv", "SGConv",
                     "GraphConv", "ARMAConv", "TransformerConv", "LEConv", "ClusterGCNConv")
    },
    **{
        f"torchaudio:{name}": partial(_torchaudio, name)
        for name in ("Wav2Letter", "DeepSpeech", "ConvTasNet", "Conformer", "Emformer", "HDemucs")
    },
    "peft:LoRA of Llama": partial(_peft, "llama", kind="LoraConfig", r=4, task_type="CAUSAL_LM"),
    "peft:DoRA of Llama": partial(_peft, "llama", kind="LoraConfig", r=4, use_dora=True, task_type="CAUSAL_LM"),
    "peft:IA3 of Bert": partial(_peft, "bert", kind="IA3Config", feedforward_modules=[], task_type="SEQ_CLS"),
    "peft:LoRA of Bert": partial(_peft, "bert", kind="LoraConfig", r=4, task_type="SEQ_CLS"),
    "peft:OFT of Bert": partial(_peft, "bert", kind="OFTConfig", r=4, oft_block_size=0, task_type="SEQ_CLS"),
    "torch:TransformerEncoder": lambda: Subject(
        nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2),
                      nn.Linear(8, CLASSES)), seeded(2, 6, 8), language=True),
    "torch:Transformer": _seq2seq,
    "torch:LSTM": lambda: Subject(_Recurrent(nn.LSTM), seeded(2, 6, 8)),
    "torch:GRU, two layers": lambda: Subject(_Recurrent(nn.GRU, num_layers=2), seeded(2, 6, 8)),
    "torch:RNN, bidirectional": lambda: Subject(_Recurrent(nn.RNN, bidirectional=True), seeded(2, 6, 8)),
    "torch:Bilinear": _bilinear,
}  # fmt: skip
