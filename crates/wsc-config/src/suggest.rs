//! Guesses which key somebody meant.

/// Finds the candidate nearest to a mistyped name, when it is near enough to be meant.
///
/// Upper case, `-` and `_` do not count as differences, so `ackTimeout` finds `ack_timeout`.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any key: not a typing mistake, and not worth a quadratic comparison.
    if name.len() > 64 {
        return None;
    }
    let plain = simplify(name);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&plain, &simplify(candidate)), candidate))
        .filter(|(distance, candidate)| {
            let shorter = plain.chars().count().min(candidate.len());
            *distance <= (shorter / 3).clamp(1, 3)
        })
        .min()
        .map(|(_, candidate)| candidate)
}

fn simplify(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = ["ack_timeout", "ack_max_retries", "listen", "queue"];
        assert_eq!(nearest("ack_timout", keys), Some("ack_timeout"));
        assert_eq!(nearest("ackTimeout", keys), Some("ack_timeout"));
        assert_eq!(nearest("ack-timeout", keys), Some("ack_timeout"));
        assert_eq!(nearest("lisetn", keys), Some("listen"));
        assert_eq!(nearest("quue", keys), Some("queue"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest(&"listen".repeat(20), keys), None);
    }
}
