//! The hash that pins a stream to one of the 1024 buckets. Keeps: a stream lands in the bucket in
//! which EventStoreDB puts it, so that a spread of streams over consumers seen here is the one seen
//! there.

use std::array;

/// Buckets of the pinned strategies; EventStoreDB's number.
pub(super) const BUCKETS: u16 = 1024;

/// The starting value EventStoreDB hashes names with.
const SEED: u32 = 0xc58f_1a7b;

// The primes of xxHash; the rounds between them are EventStoreDB's own variant, not the published
// algorithm.
const P1: u32 = 2_654_435_761;
const P2: u32 = 2_246_822_519;
const P3: u32 = 3_266_489_917;
const P4: u32 = 668_265_263;
const P5: u32 = 0x1656_67b1;

/// Bytes that one round over the four lanes takes; shorter input is hashed word by word.
const BLOCK: usize = 16;

/// The bucket of a name.
pub(super) fn bucket(name: &str) -> u16 {
    let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    (hash(&utf16) % u32::from(BUCKETS)) as u16
}

fn hash(bytes: &[u8]) -> u32 {
    if bytes.len() < BLOCK { short(bytes) } else { long(bytes) }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte))
}

fn short(bytes: &[u8]) -> u32 {
    let mut step = SEED.wrapping_add(P1);
    let mut crc = P5;
    // A last full word is taken byte by byte, too.
    let words = bytes.len().saturating_sub(1) / 4;
    let (head, tail) = bytes.split_at(words * 4);
    for chunk in head.chunks_exact(4) {
        crc = crc.wrapping_add(word(chunk).wrapping_add(step));
        step = step.wrapping_add(1);
        crc = crc.wrapping_add(crc.rotate_left(17).wrapping_mul(P4));
        crc = crc.wrapping_mul(P1);
    }
    for byte in tail {
        crc = crc.wrapping_add(u32::from(*byte).wrapping_add(step));
        step = step.wrapping_add(1);
        crc = crc.wrapping_mul(P1);
    }
    crc = crc.wrapping_add(bytes.len() as u32);
    crc ^= crc >> 15;
    crc = crc.wrapping_mul(P2);
    crc ^= crc >> 13;
    crc = crc.wrapping_mul(P3);
    crc ^ (crc >> 16)
}

fn long(bytes: &[u8]) -> u32 {
    let len = bytes.len() as u32;
    let first = SEED.wrapping_add(P1);
    let second = first.wrapping_mul(P2).wrapping_add(len);
    let third = second.wrapping_mul(P3);
    let mut lanes = [first, second, third, third.wrapping_mul(P4)];
    let mut round = |block: &[u8], turns: [u32; 4]| {
        lanes = array::from_fn(|i| {
            let lane = lanes[i];
            lane.wrapping_add(lane.rotate_left(turns[i]))
                .wrapping_mul(P1)
                .wrapping_add(word(&block[i * 4..i * 4 + 4]))
        });
    };
    // The last block is the last 16 bytes, whether or not a round has seen some of them.
    let last = bytes.len() - BLOCK;
    for start in (0..last).step_by(BLOCK) {
        round(&bytes[start..start + BLOCK], [13, 11, 17, 19]);
    }
    round(&bytes[last..], [17, 19, 13, 11]);
    for (lane, turn) in lanes.iter_mut().zip([11, 17, 19, 13]) {
        *lane = lane.wrapping_mul(P2);
        *lane = lane.wrapping_add(lane.rotate_left(turn)).wrapping_mul(P3);
    }
    let mut crc = lanes
        .iter()
        .zip([0, 3, 6, 9])
        .fold(0_u32, |sum, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
    crc ^= crc >> 11;
    crc = crc.wrapping_add(P4.wrapping_add(len).wrapping_mul(P1));
    crc ^= crc >> 15;
    crc = crc.wrapping_mul(P2);
    crc ^ (crc >> 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by a second program written from the definition, block by block.
    const KNOWN: [(&str, u32); 11] = [
        ("", 0x02cc_5d05),
        ("a", 0xe4db_da76),
        ("ab", 0x191a_8c9b),
        ("abc", 0xceb2_1450),
        ("loan-1", 0x3c7f_cf01),
        ("loan-12", 0xde99_9d0f),
        ("loan-123", 0x2936_6d8b),
        ("loan-1234", 0x0598_1721),
        ("loan-00000000-0000-0000-0000-000000000001", 0x2ed9_cda0),
        ("größe-7", 0xbef8_af5f),
        ("xxxxxxxxxxxxxxxx", 0xd2a4_cc9d),
    ];

    #[test]
    fn hashes_are_eventstoredbs() {
        for (name, expected) in KNOWN {
            let bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            assert_eq!(hash(&bytes), expected, "{name}");
            assert_eq!(u32::from(bucket(name)), expected % 1024, "{name}");
        }
    }

    #[test]
    fn names_spread_over_the_buckets() {
        let used: std::collections::HashSet<u16> = (0..4096).map(|n| bucket(&format!("loan-{n}"))).collect();
        assert!(used.len() > 900, "{} buckets of 1024", used.len());
    }
}
