"""The networks: `RCM` (encoder + projector, stage 1) and `EPG` (encoder + decoder, stage 2)."""

from epg.cost.shape import NetworkShape
from epg.networks.decoder import EPG, Decoder
from epg.networks.encoder import RCM, Encoder, Projector
from epg.networks.spectrum import Spectrum

__all__ = ["EPG", "RCM", "Decoder", "Encoder", "NetworkShape", "Projector", "Spectrum"]
