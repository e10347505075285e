//! What the fuzz targets check, one function each: it panics where an input shows a mistake.
//!
//! The targets in `fuzz_targets/` hand them what libFuzzer thinks up. The tests here hand them the corpus, without
//! libFuzzer and on any toolchain: `cargo test --lib` in this folder.

pub mod envelope;
pub mod frames;
pub mod handshake;
pub mod http_bodies;
mod json;
pub mod settings;
pub mod tokens;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Checks every file of a target's corpus.
    fn replay(target: &str, check: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&folder).expect("the corpus is committed") {
            let path = entry.expect("a readable folder").path();
            // Captured by the test harness, shown where it fails.
            println!("{}", path.display());
            check(&fs::read(&path).expect("a readable file"));
            count += 1;
        }
        assert!(count > 10, "{} has {count} files", folder.display());
    }

    #[test]
    fn frames() {
        replay("frames", crate::frames::check);
    }

    #[test]
    fn envelope() {
        replay("envelope", crate::envelope::check);
    }

    #[test]
    fn settings() {
        replay("settings", crate::settings::check);
    }

    #[test]
    fn handshake() {
        replay("handshake", crate::handshake::check);
    }

    #[test]
    fn http_bodies() {
        replay("http_bodies", crate::http_bodies::check);
    }

    #[test]
    fn tokens() {
        replay("tokens", crate::tokens::check);
    }
}
