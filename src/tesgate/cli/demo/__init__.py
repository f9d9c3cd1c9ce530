"""``tesgate demo``: a gateway, real data and real tasks on a machine that has nothing yet."""
