//! Philox4x32-10, a counter-based random number generator: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
//! easy as 1, 2, 3", SC 2011. A number is a pure function of key and counter, so a token's draw depends on its
//! sequence's seed and its position only, never on the batch, and a device draws the same without keeping state.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key each round: the golden ratio, and the square root of three less one.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The block of four numbers at `counter`.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [high0, low0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(counter[0]));
        let [high1, low1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(counter[2]));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// High and low half.
const fn halves(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

/// The 64 random bits of the token at `position` under `seed`: the first two numbers of the block whose counter is the
/// position, the second number in the high half.
pub(super) fn bits(seed: u64, position: u32) -> u64 {
    let [high, low] = halves(seed);
    let block = philox([position, 0, 0, 0], [low, high]);
    u64::from(block[1]) << 32 | u64::from(block[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' own library, Random123 (`tests/kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn bits_take_the_whole_seed() {
        assert_eq!(bits(0, 0), 0xe169_c58d_6627_e8d5);
        assert_ne!(bits(1, 0), bits(1 << 32, 0));
        assert_ne!(bits(1, 0), bits(1, 1));
    }
}
