//! Part of the NVMe specification's wire types.
