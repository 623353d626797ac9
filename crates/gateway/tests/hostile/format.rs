//! The little that these tests know of the data folder: the file `meta` and its format number.

use std::path::Path;

/// Makes the data folder look as a newer release would have written it.
pub fn make_newer(folder: &Path) {
    let path = folder.join("meta");
    let mut bytes = std::fs::read(&path).expect("the file meta");
    // [magic 8][format, 4 bytes, big-endian] ... [CRC-32 of all before it].
    bytes[8..12].copy_from_slice(&1000_u32.to_be_bytes());
    let covered = bytes.len() - 4;
    let sum = crc32(&bytes[..covered]).to_be_bytes();
    bytes[covered..].copy_from_slice(&sum);
    std::fs::write(&path, bytes).expect("writing the file meta");
}

/// CRC-32 as in Ethernet and zip (polynomial 0x04C11DB7, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 * (sum & 1))
        })
    })
}

#[test]
fn the_sum_is_the_known_one() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}
