"""The architectures of the sweep: the smallest of each family of torchvision and timm."""

NAMES: tuple[str, ...] = (
    *(
        f"torchvision:{name}"
        for name in """
        alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet
        inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf
        regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1
        swin_t swin_v2_t vgg11_bn vit_b_32
        """.split()
    ),
    *(
        f"timm:{name}"
        for name in """
        bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny
        coatnet_nano_rw_224 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto
        crossvit_9_240 cs3darknet_focus_s cspresnet50 davit_tiny
        deit_tiny_distilled_patch16_224 dla46_c dpn48b edgenext_xx_small efficientformer_l1
        efficientformerv2_s0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
        fasternet_t0 fastvit_t8 fbnetv3_b focalnet_tiny_srf gcvit_xxtiny ghostnet_050
        gmlp_ti16_224 halonet26t hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
        inception_next_atto inception_v4 lambda_resnet26t lcnet_050 legacy_seresnet18
        legacy_xception levit_128s mambaout_femto mixer_s32_224 mobilenetv4_conv_small
        mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nf_regnet_b0
        nfnet_l0 pit_ti_224 poolformerv2_s12 pvt_v2_b0 rdnet_tiny repghostnet_050 repvgg_a0
        repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnet10t resnetv2_50
        rexnet_100 selecsls42 semnasnet_050 sequencer2d_s shvit_s1 skresnet18 starnet_s1
        swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
        tf_efficientnetv2_b0 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small
        vgg11 visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224 volo_d1_224
        vovnet39a xception41 xcit_nano_12_p16_224
        """.split()
    ),
)
