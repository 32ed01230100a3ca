//! The digest of NVMe/TCP headers and data: CRC32C (NVMe/TCP 1.1, 3.3.1.1).

use crc_fast::{CrcAlgorithm, checksum};

/// The digest of `bytes`; on the wire it is sent in little-endian order.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_castagnoli_polynomial() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
