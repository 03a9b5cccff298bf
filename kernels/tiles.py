from .launch import Tile


def tile_of(device, kernel, kind, K, V, dtype):
    E = K if kernel in ("scan dq", "scan dk") else V
    return Tile(min(64, max(16, 1 << (E - 1).bit_length())), 8 if max(K, V) >= 128 else 4, 2)
