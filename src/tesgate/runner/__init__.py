"""What ships into other people's machines: pure Python >= 3.9, importing nothing else of tesgate.

`plan` and `report` are the wire between a gateway and a runner; everything else here is the runner's own.
"""
