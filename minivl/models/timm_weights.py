"""The weights timm publishes of each of its plain ViTs: preprocessing, classes, tags. A table, no code."""

from __future__ import annotations

from ..images import Preprocessing
from .preset import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, OPENAI_MEAN, OPENAI_STD

SIDE = (224, 224)  # stands for the side of each model's images
INCEPTION = Preprocessing(SIDE, INCEPTION_MEAN, INCEPTION_STD, 1.0)
INCEPTION_95 = Preprocessing(SIDE, INCEPTION_MEAN, INCEPTION_STD, 0.95)
INCEPTION_90 = Preprocessing(SIDE, INCEPTION_MEAN, INCEPTION_STD, 0.9)
INCEPTION_SQUASH = Preprocessing(SIDE, INCEPTION_MEAN, INCEPTION_STD, 1.0, "squash")
INCEPTION_SQUASH_95 = Preprocessing(SIDE, INCEPTION_MEAN, INCEPTION_STD, 0.95, "squash_crop")
IMAGENET = Preprocessing(SIDE, IMAGENET_MEAN, IMAGENET_STD, 1.0)
IMAGENET_90 = Preprocessing(SIDE, IMAGENET_MEAN, IMAGENET_STD, 0.9)
OPENAI = Preprocessing(SIDE, OPENAI_MEAN, OPENAI_STD, 1.0)
OPENAI_95 = Preprocessing(SIDE, OPENAI_MEAN, OPENAI_STD, 0.95)
OPENAI_90 = Preprocessing(SIDE, OPENAI_MEAN, OPENAI_STD, 0.9)
OPENAI_SQUASH = Preprocessing(SIDE, OPENAI_MEAN, OPENAI_STD, 1.0, "squash")
OPENAI_SQUASH_95 = Preprocessing(SIDE, OPENAI_MEAN, OPENAI_STD, 0.95, "squash_crop")
PLAIN = Preprocessing(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
PLAIN_875 = Preprocessing(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.875, interpolation="bilinear")

# architecture: (preprocessing, classes, tags of the weights that have both); the first tag is timm's default
WEIGHTS: dict[str, list[tuple[Preprocessing, int, str]]] = {
    "deit3_small_patch16_224": [(IMAGENET_90, 1000, "fb_in1k"), (IMAGENET, 1000, "fb_in22k_ft_in1k")],
    "deit3_small_patch16_384": [(IMAGENET, 1000, "fb_in1k fb_in22k_ft_in1k")],
    "deit3_medium_patch16_224": [(IMAGENET_90, 1000, "fb_in1k"), (IMAGENET, 1000, "fb_in22k_ft_in1k")],
    "deit3_base_patch16_224": [(IMAGENET_90, 1000, "fb_in1k"), (IMAGENET, 1000, "fb_in22k_ft_in1k")],
    "deit3_base_patch16_384": [(IMAGENET, 1000, "fb_in1k fb_in22k_ft_in1k")],
    "deit3_large_patch16_224": [(IMAGENET_90, 1000, "fb_in1k"), (IMAGENET, 1000, "fb_in22k_ft_in1k")],
    "deit3_large_patch16_384": [(IMAGENET, 1000, "fb_in1k fb_in22k_ft_in1k")],
    "deit3_huge_patch14_224": [(IMAGENET_90, 1000, "fb_in1k"), (IMAGENET, 1000, "fb_in22k_ft_in1k")],
    "deit_tiny_distilled_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_small_distilled_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_base_distilled_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_base_distilled_patch16_384": [(IMAGENET, 1000, "fb_in1k")],
    "vit_tiny_patch16_224": [(INCEPTION_90, 1000, "augreg_in21k_ft_in1k"), (INCEPTION_90, 21843, "augreg_in21k")],
    "vit_tiny_patch16_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k")],
    "vit_small_patch32_224": [(INCEPTION_90, 1000, "augreg_in21k_ft_in1k"), (INCEPTION_90, 21843, "augreg_in21k")],
    "vit_small_patch32_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k")],
    "vit_small_patch16_224": [
        (INCEPTION_90, 1000, "augreg_in21k_ft_in1k augreg_in1k"),
        (INCEPTION_90, 21843, "augreg_in21k"),
        (IMAGENET_90, 0, "dino")],
    "vit_small_patch16_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k augreg_in1k")],
    "vit_small_patch8_224": [(IMAGENET_90, 0, "dino")],
    "vit_base_patch32_224": [
        (INCEPTION_90, 1000, "augreg_in21k_ft_in1k augreg_in1k sam_in1k"),
        (INCEPTION_90, 0, "orig_in21k"),
        (INCEPTION_90, 21843, "augreg_in21k")],
    "vit_base_patch32_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k augreg_in1k")],
    "vit_base_patch16_224": [
        (INCEPTION_90, 1000, "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in1k sam_in1k"),
        (INCEPTION_90, 0, "orig_in21k"),
        (INCEPTION_90, 21843, "augreg_in21k"),
        (OPENAI, 115217, "bamboo"),
        (IMAGENET_90, 0, "dino mae")],
    "vit_base_patch16_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in1k")],
    "vit_base_patch8_224": [
        (INCEPTION_90, 1000, "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k"),
        (INCEPTION_90, 21843, "augreg_in21k"),
        (IMAGENET_90, 0, "dino")],
    "vit_large_patch32_224": [(INCEPTION_90, 0, "orig_in21k")],
    "vit_large_patch32_384": [(INCEPTION, 1000, "orig_in21k_ft_in1k")],
    "vit_large_patch16_224": [
        (INCEPTION_90, 1000, "augreg_in21k_ft_in1k"),
        (INCEPTION_90, 0, "orig_in21k"),
        (INCEPTION_90, 21843, "augreg_in21k"),
        (IMAGENET_90, 0, "mae")],
    "vit_large_patch16_384": [(INCEPTION, 1000, "augreg_in21k_ft_in1k")],
    "vit_large_patch14_224": [(INCEPTION_90, 1000, "untrained")],
    "vit_huge_patch14_224": [
        (INCEPTION_90, 0, "orig_in21k"),
        (INCEPTION_90, 1000, "untrained"),
        (IMAGENET_90, 0, "mae")],
    "vit_giant_patch14_224": [(INCEPTION_90, 1000, "untrained")],
    "vit_gigantic_patch14_224": [(INCEPTION_90, 1000, "untrained")],
    "deit_tiny_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_small_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_base_patch16_224": [(IMAGENET_90, 1000, "fb_in1k")],
    "deit_base_patch16_384": [(IMAGENET, 1000, "fb_in1k")],
    "eva_large_patch14_196": [(OPENAI, 1000, "in22k_ft_in22k_in1k in22k_ft_in1k")],
    "eva_large_patch14_336": [(OPENAI_SQUASH, 1000, "in22k_ft_in22k_in1k in22k_ft_in1k")],
    "flexivit_small": [(INCEPTION_95, 1000, "1200ep_in1k 600ep_in1k 300ep_in1k")],
    "flexivit_base": [
        (INCEPTION_95, 1000, "1200ep_in1k 600ep_in1k 300ep_in1k"),
        (INCEPTION_95, 21843, "1000ep_in21k 300ep_in21k patch16_in21k patch30_in21k")],
    "flexivit_large": [(INCEPTION_95, 1000, "1200ep_in1k 600ep_in1k 300ep_in1k")],
    "vit_small_patch14_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_small_patch16_36x1_224": [(INCEPTION_90, 1000, "untrained")],
    "vit_base_patch14_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_base_patch32_plus_256": [(INCEPTION_95, 1000, "untrained")],
    "vit_base_patch16_plus_240": [(INCEPTION_95, 1000, "untrained")],
    "vit_large_patch14_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_base_patch14_reg1_tipsv2": [(PLAIN, 0, "webli")],
    "vit_large_patch14_reg1_tipsv2": [(PLAIN, 0, "webli")],
    "vit_so400m_patch14_reg1_tipsv2": [(PLAIN, 0, "webli")],
    "vit_small_patch14_reg4_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_base_patch14_reg4_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_large_patch14_reg4_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_base_patch16_224_miil": [(PLAIN_875, 11221, "in21k"), (PLAIN_875, 1000, "in21k_ft_in1k")],
    "vit_xsmall_patch16_clip_224": [(OPENAI_90, 512, "tinyclip_yfcc15m")],
    "vit_medium_patch32_clip_224": [(OPENAI_90, 512, "tinyclip_laion400m")],
    "vit_medium_patch16_clip_224": [(OPENAI_90, 512, "tinyclip_yfcc15m")],
    "vit_betwixt_patch32_clip_224": [(OPENAI_90, 512, "tinyclip_laion400m")],
    "vit_base_patch32_clip_224": [
        (OPENAI_90, 1000, "laion2b_ft_in12k_in1k openai_ft_in12k_in1k laion2b_ft_in1k openai_ft_in1k"),
        (OPENAI_90, 512, "laion2b laion400m_e32 openai"),
        (OPENAI, 512, "datacompxl metaclip_2pt5b metaclip_400m")],
    "vit_base_patch32_clip_256": [(OPENAI, 512, "datacompxl")],
    "vit_base_patch32_clip_384": [
        (OPENAI, 1000, "laion2b_ft_in12k_in1k"),
        (OPENAI_SQUASH_95, 1000, "openai_ft_in12k_in1k")],
    "vit_base_patch32_clip_448": [(OPENAI, 1000, "laion2b_ft_in12k_in1k")],
    "vit_base_patch16_clip_224": [
        (OPENAI_95, 1000, "laion2b_ft_in12k_in1k openai_ft_in12k_in1k"),
        (OPENAI, 1000, "laion2b_ft_in1k"),
        (OPENAI_90, 1000, "openai_ft_in1k"),
        (OPENAI_90, 11821, "laion2b_ft_in12k openai_ft_in12k"),
        (OPENAI, 512, "laion2b laion400m_e32 datacompxl dfn2b metaclip_2pt5b metaclip_400m"),
        (OPENAI_90, 512, "openai")],
    "vit_base_patch16_clip_384": [
        (OPENAI_SQUASH, 1000, "laion2b_ft_in12k_in1k laion2b_ft_in1k openai_ft_in1k"),
        (OPENAI_SQUASH_95, 1000, "openai_ft_in12k_in1k")],
    "vit_base_patch16_plus_clip_240": [(OPENAI, 640, "laion400m_e32")],
    "vit_large_patch14_clip_224": [
        (INCEPTION, 1000, "laion2b_ft_in12k_in1k laion2b_ft_in1k"),
        (OPENAI, 1000, "openai_ft_in12k_in1k openai_ft_in1k"),
        (INCEPTION, 11821, "laion2b_ft_in12k"),
        (OPENAI, 11821, "openai_ft_in12k"),
        (INCEPTION, 768, "laion2b"),
        (OPENAI, 768, "laion400m_e32 datacompxl dfn2b_s39b dfn2b metaclip_2pt5b metaclip_400m openai "
                      "apple_mclip2_dfndr2b")],
    "vit_large_patch14_clip_336": [
        (INCEPTION_SQUASH, 1000, "laion2b_ft_in12k_in1k laion2b_ft_in1k"),
        (OPENAI_SQUASH, 1000, "openai_ft_in12k_in1k"),
        (OPENAI, 768, "openai")],
    "vit_huge_patch14_clip_224": [
        (OPENAI, 1000, "laion2b_ft_in12k_in1k laion2b_ft_in1k"),
        (OPENAI, 11821, "laion2b_ft_in12k"),
        (OPENAI, 1024, "laion2b dfn5b metaclip2_worldwide metaclip_2pt5b metaclip_altogether")],
    "vit_huge_patch14_clip_336": [(OPENAI_SQUASH, 1000, "laion2b_ft_in12k_in1k laion2b_ft_in1k")],
    "vit_huge_patch14_clip_378": [(OPENAI, 1024, "dfn5b"), (OPENAI_SQUASH, 1024, "metaclip2_worldwide")],
    "vit_giant_patch14_clip_224": [(OPENAI, 1024, "laion2b")],
    "vit_gigantic_patch14_clip_224": [(OPENAI, 1280, "laion2b metaclip2_worldwide metaclip_2pt5b")],
    "vit_gigantic_patch14_clip_378": [(OPENAI_SQUASH, 1280, "metaclip2_worldwide")],
    "vit_base_patch32_clip_quickgelu_224": [
        (OPENAI_90, 512, "laion400m_e32 openai"),
        (OPENAI, 512, "metaclip_2pt5b metaclip_400m")],
    "vit_base_patch16_clip_quickgelu_224": [
        (OPENAI, 512, "metaclip_2pt5b metaclip_400m"),
        (OPENAI_90, 512, "openai")],
    "vit_large_patch14_clip_quickgelu_224": [(OPENAI, 768, "dfn2b metaclip_2pt5b metaclip_400m openai")],
    "vit_large_patch14_clip_quickgelu_336": [(OPENAI, 768, "openai")],
    "vit_huge_patch14_clip_quickgelu_224": [(OPENAI, 1024, "dfn5b metaclip2_worldwide metaclip_2pt5b")],
    "vit_huge_patch14_clip_quickgelu_378": [(OPENAI, 1024, "dfn5b")],
    "vit_gigantic_patch14_clip_quickgelu_224": [(OPENAI, 1280, "metaclip_2pt5b")],
    "vit_base_patch16_siglip_gap_224": [(INCEPTION_90, 0, "v2_webli webli")],
    "vit_base_patch16_siglip_gap_256": [(INCEPTION_90, 0, "v2_webli webli webli_i18n")],
    "vit_base_patch16_siglip_gap_384": [(INCEPTION_90, 0, "v2_webli webli")],
    "vit_base_patch16_siglip_gap_512": [(INCEPTION_90, 0, "v2_webli webli")],
    "vit_base_patch16_gap_224": [(INCEPTION_90, 1000, "untrained")],
    "vit_large_patch16_siglip_gap_256": [(INCEPTION_90, 0, "v2_webli webli")],
    "vit_large_patch16_siglip_gap_384": [(INCEPTION_90, 0, "v2_webli webli")],
    "vit_so400m_patch14_siglip_gap_224": [
        (INCEPTION_90, 0, "v2_webli webli pali_mix pali_pt pali2_3b_pt pali2_10b_pt")],
    "vit_so400m_patch14_siglip_gap_378": [
        (INCEPTION_90, 0, "v2_webli"),
        (INCEPTION, 0, "webli"),
        (INCEPTION_SQUASH, 1000, "webli_ft_in1k")],
    "vit_so400m_patch14_siglip_gap_448": [
        (INCEPTION, 0, "pali_mix pali_pt pali_refcoco_seg pali_ocrvqa pali2_3b_pt pali2_10b_pt pali2_3b_docci "
                       "pali2_10b_docci")],
    "vit_so400m_patch14_siglip_gap_896": [
        (INCEPTION, 0, "pali_pt pali_refcoco_seg pali_ocrvqa pali2_3b_pt pali2_10b_pt")],
    "vit_huge_patch16_gap_448": [(IMAGENET, 0, "in1k_ijepa")],
    "vit_huge_patch14_gap_224": [(IMAGENET_90, 0, "in1k_ijepa in22k_ijepa")],
    "vit_giant_patch16_gap_224": [(IMAGENET_90, 0, "in22k_ijepa")],
    "vit_base_patch16_reg4_gap_256": [(INCEPTION_90, 1000, "untrained")],
    "vit_base_patch32_siglip_gap_256": [(INCEPTION_90, 0, "v2_webli")],
    "vit_large_patch16_siglip_gap_512": [(INCEPTION_90, 0, "v2_webli")],
    "vit_so400m_patch16_siglip_gap_256": [(INCEPTION_90, 0, "v2_webli webli_i18n")],
    "vit_so400m_patch16_siglip_gap_384": [(INCEPTION_90, 0, "v2_webli")],
    "vit_so400m_patch16_siglip_gap_512": [(INCEPTION_90, 0, "v2_webli")],
    "vit_giantopt_patch16_siglip_gap_256": [(INCEPTION_90, 0, "v2_webli")],
    "vit_giantopt_patch16_siglip_gap_384": [(INCEPTION_90, 0, "v2_webli")],
    "vit_medium_patch16_gap_240": [(INCEPTION_95, 11821, "sw_in12k")],
    "vit_medium_patch16_gap_256": [(INCEPTION_95, 1000, "sw_in12k_ft_in1k")],
    "vit_medium_patch16_gap_384": [(INCEPTION_SQUASH_95, 1000, "sw_in12k_ft_in1k")],
    "vit_betwixt_patch16_gap_256": [(INCEPTION_95, 1000, "untrained")],
    "vit_wee_patch16_reg1_gap_256": [(INCEPTION_95, 1000, "sbb_in1k")],
    "vit_little_patch16_reg1_gap_256": [
        (INCEPTION_95, 1000, "sbb_in12k_ft_in1k"),
        (INCEPTION_95, 11821, "sbb_in12k")],
    "vit_medium_patch16_reg1_gap_256": [(INCEPTION_95, 1000, "sbb_in1k")],
    "vit_betwixt_patch16_reg1_gap_256": [(INCEPTION_95, 1000, "sbb_in1k")],
    "vit_little_patch16_reg4_gap_256": [(INCEPTION_95, 1000, "sbb_in1k")],
    "vit_medium_patch16_reg4_gap_256": [
        (INCEPTION_95, 1000, "sbb_in12k_ft_in1k sbb_in1k"),
        (INCEPTION_95, 11821, "sbb_in12k")],
    "vit_mediumd_patch16_reg4_gap_256": [
        (INCEPTION_95, 1000, "sbb2_e200_in12k_ft_in1k sbb_in12k_ft_in1k"),
        (INCEPTION_95, 11821, "sbb2_e200_in12k sbb_in12k")],
    "vit_mediumd_patch16_reg4_gap_384": [(INCEPTION, 1000, "sbb2_e200_in12k_ft_in1k")],
    "vit_betwixt_patch16_reg4_gap_256": [
        (INCEPTION_95, 1000, "sbb2_e200_in12k_ft_in1k sbb_in12k_ft_in1k sbb_in1k"),
        (INCEPTION_95, 11821, "sbb2_e200_in12k sbb_in12k")],
    "vit_betwixt_patch16_reg4_gap_384": [(INCEPTION, 1000, "sbb2_e200_in12k_ft_in1k")],
    "vit_giant_patch14_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_giant_patch14_reg1_tipsv2": [(PLAIN, 0, "webli")],
    "vit_giant_patch14_reg4_dinov2": [(IMAGENET, 0, "lvd142m")],
    "vit_so150m2_patch16_reg1_gap_256": [
        (INCEPTION, 1000, "sbb_e200_in12k_ft_in1k"),
        (INCEPTION, 11821, "sbb_e200_in12k")],
    "vit_so150m2_patch16_reg1_gap_384": [(INCEPTION, 1000, "sbb_e200_in12k_ft_in1k")],
    "vit_so150m2_patch16_reg1_gap_448": [(INCEPTION_SQUASH, 1000, "sbb_e200_in12k_ft_in1k")],
    "vit_so150m_patch16_reg4_gap_256": [
        (INCEPTION_95, 1000, "sbb_e250_in12k_ft_in1k"),
        (INCEPTION_95, 11821, "sbb_e250_in12k")],
    "vit_so150m_patch16_reg4_gap_384": [(INCEPTION, 1000, "sbb_e250_in12k_ft_in1k")],
}
