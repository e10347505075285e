#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use wsc_fuzz::frames;

fuzz_target!(|data: &[u8]| frames::check(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    frames::mutate(data, size, seed, |data, size| fuzzer_mutate(data, size, data.len().min(max_size)))
});
