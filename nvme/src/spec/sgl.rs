//! SGL descriptors, as they lie in a command's data pointer and as what they mean.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// SGL Identifier of a Data Block with an address: type 0h, subtype 0h.
pub const DATA_BLOCK: u8 = 0x00;
/// SGL Identifier of a Data Block with an offset into the capsule's data: type 0h, subtype 1h.
pub const OFFSET_BLOCK: u8 = 0x01;
/// SGL Identifier of a Segment, which holds descriptors and ends with one of a further segment: type
/// 2h, subtype 0h.
pub const SEGMENT: u8 = 0x20;
/// SGL Identifier of a Last Segment, which holds descriptors: type 3h, subtype 0h.
pub const LAST_SEGMENT: u8 = 0x30;
/// SGL Identifier of a Keyed Data Block: type 4h, subtype 0h.
pub const KEYED_DATA_BLOCK: u8 = 0x40;
/// SGL Identifier of a Keyed Data Block whose key is to be invalidated: type 4h, subtype Fh.
pub const KEYED_DATA_BLOCK_INVALIDATE: u8 = 0x4F;
/// SGL Identifier of a Transport Data Block: type 5h, subtype Ah.
pub const TRANSPORT_DATA_BLOCK: u8 = 0x5A;
/// The longest block a keyed descriptor can name: its length has 24 bits.
pub const KEYED_LEN_MAX: u32 = 0x00FF_FFFF;

/// An SGL descriptor (Base, section 4.3.2). All types have the identifier in the last byte.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address or offset, bytes 7:0; reserved in a Transport Data Block.
    pub address: U64,
    /// Length in bytes, bytes 11:8. In a keyed descriptor its highest byte is the key's lowest.
    pub length: U32,
    /// Bytes 14:12: reserved, or the key's upper three bytes.
    pub specific: [u8; 3],
    /// SGL Identifier, byte 15: the subtype in bits 3:0, the type in bits 7:4.
    pub identifier: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

/// What an SGL descriptor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// Memory at an address.
    DataBlock {
        /// The address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// Data in the command capsule.
    OffsetBlock {
        /// Bytes from the start of the capsule's data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Remote memory with a key, as RDMA has it.
    KeyedDataBlock {
        /// The address.
        address: u64,
        /// Bytes, 24 bits wide.
        len: u32,
        /// The remote key.
        key: u32,
        /// Whether the key is to be invalidated remotely when the command completes.
        invalidate: bool,
    },
    /// Data that the transport moves by its own means, as TCP does.
    TransportDataBlock {
        /// Bytes.
        len: u32,
    },
    /// Any other type or subtype.
    Unknown(
        /// The SGL Identifier.
        u8,
    ),
}

impl SglDescriptor {
    /// A Data Block with an address.
    #[must_use]
    pub fn data_block(address: u64, len: u32) -> Self {
        Self::of(DATA_BLOCK, address, len)
    }

    /// A Data Block in the command capsule.
    #[must_use]
    pub fn offset_block(offset: u64, len: u32) -> Self {
        Self::of(OFFSET_BLOCK, offset, len)
    }

    /// A Last Segment: `len` bytes of descriptors at an address.
    #[must_use]
    pub fn last_segment(address: u64, len: u32) -> Self {
        Self::of(LAST_SEGMENT, address, len)
    }

    /// A Transport Data Block.
    #[must_use]
    pub fn transport(len: u32) -> Self {
        Self::of(TRANSPORT_DATA_BLOCK, 0, len)
    }

    /// A Keyed Data Block; only the lowest 24 bits of `len` count.
    #[must_use]
    pub fn keyed(address: u64, len: u32, key: u32, invalidate: bool) -> Self {
        let identifier = if invalidate {
            KEYED_DATA_BLOCK_INVALIDATE
        } else {
            KEYED_DATA_BLOCK
        };
        let [lowest, upper @ ..] = key.to_le_bytes();
        let length = len & KEYED_LEN_MAX | u32::from(lowest) << 24;
        Self {
            specific: upper,
            ..Self::of(identifier, address, length)
        }
    }

    fn of(identifier: u8, address: u64, length: u32) -> Self {
        Self {
            address: U64::new(address),
            length: U32::new(length),
            specific: [0; 3],
            identifier,
        }
    }

    /// The descriptor that these bytes are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        zerocopy::transmute!(bytes)
    }

    /// The bytes of this descriptor.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }

    /// What this descriptor means.
    #[must_use]
    pub fn parse(&self) -> Sgl {
        let (address, len) = (self.address.get(), self.length.get());
        match self.identifier {
            DATA_BLOCK => Sgl::DataBlock { address, len },
            OFFSET_BLOCK => Sgl::OffsetBlock {
                offset: address,
                len,
            },
            KEYED_DATA_BLOCK | KEYED_DATA_BLOCK_INVALIDATE => {
                let [a, b, c] = self.specific;
                Sgl::KeyedDataBlock {
                    address,
                    len: len & KEYED_LEN_MAX,
                    key: u32::from_le_bytes([(len >> 24) as u8, a, b, c]),
                    invalidate: self.identifier == KEYED_DATA_BLOCK_INVALIDATE,
                }
            }
            TRANSPORT_DATA_BLOCK => Sgl::TransportDataBlock { len },
            other => Sgl::Unknown(other),
        }
    }
}

impl From<Sgl> for SglDescriptor {
    fn from(sgl: Sgl) -> Self {
        match sgl {
            Sgl::DataBlock { address, len } => Self::data_block(address, len),
            Sgl::OffsetBlock { offset, len } => Self::offset_block(offset, len),
            Sgl::KeyedDataBlock {
                address,
                len,
                key,
                invalidate,
            } => Self::keyed(address, len, key, invalidate),
            Sgl::TransportDataBlock { len } => Self::transport(len),
            Sgl::Unknown(identifier) => Self::of(identifier, 0, 0),
        }
    }
}

impl From<[u8; 16]> for SglDescriptor {
    fn from(bytes: [u8; 16]) -> Self {
        Self::from_bytes(bytes)
    }
}

impl From<SglDescriptor> for [u8; 16] {
    fn from(sgl: SglDescriptor) -> Self {
        sgl.to_bytes()
    }
}

impl Sgl {
    /// How many bytes it describes; 0 where its type is unknown.
    #[must_use]
    pub const fn len(&self) -> u32 {
        match *self {
            Self::DataBlock { len, .. }
            | Self::OffsetBlock { len, .. }
            | Self::KeyedDataBlock { len, .. }
            | Self::TransportDataBlock { len } => len,
            Self::Unknown(_) => 0,
        }
    }

    /// Whether it describes no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_as_it_lies_on_the_wire() {
        let bytes = [
            8, 7, 6, 5, 4, 3, 2, 1, 0x00, 0x10, 0x20, 0xDD, 0xCC, 0xBB, 0xAA, 0x4F,
        ];
        let sgl = Sgl::KeyedDataBlock {
            address: 0x0102_0304_0506_0708,
            len: 0x0020_1000,
            key: 0xAABB_CCDD,
            invalidate: true,
        };
        assert_eq!(SglDescriptor::from_bytes(bytes).parse(), sgl);
        assert_eq!(SglDescriptor::from(sgl).to_bytes(), bytes);
    }

    #[test]
    fn what_is_built_is_what_is_read() {
        for sgl in [
            Sgl::DataBlock {
                address: 0x1_0000_0000,
                len: 4096,
            },
            Sgl::OffsetBlock {
                offset: 0,
                len: 1024,
            },
            Sgl::KeyedDataBlock {
                address: 1,
                len: KEYED_LEN_MAX,
                key: 9,
                invalidate: false,
            },
            Sgl::TransportDataBlock { len: u32::MAX },
            Sgl::Unknown(0x31),
        ] {
            assert_eq!(SglDescriptor::from(sgl).parse(), sgl);
        }
        assert_eq!(
            SglDescriptor::transport(512).to_bytes()[8..],
            [0, 2, 0, 0, 0, 0, 0, 0x5A]
        );
    }
}
