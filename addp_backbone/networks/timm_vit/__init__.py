"""Any plain ViT of timm as a backbone, computed by timm as it was published."""

from addp_backbone.networks.timm_vit.backbone import TimmViT

__all__ = ['TimmViT']
