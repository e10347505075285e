//! The settings of retries, checked.

use std::time::Duration;

use wsc_protocol::FailureReason;

use crate::{Delays, Retry, RetryRules};

/// What a [`RetryPolicy`] is made from. The defaults are those of the settings.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryConfig {
    /// How often a failed send is tried again. Default 3; 0: never. More outlasts longer trouble and delays the final
    /// failure.
    pub max_retries: u32,
    /// The delay before the first retry. Default 100 ms.
    pub base_delay: Duration,
    /// What no delay exceeds before jitter. Default 5 s; not less than `base_delay`.
    pub max_delay: Duration,
    /// By what each delay is longer than the one before. Default 2.0; at least 1.
    pub backoff_factor: f64,
    /// By which share of itself a delay is moved at most, up or down. Default 0.1; from 0 to 1. More spreads the
    /// retries of messages that failed together.
    pub jitter: f64,
    /// Which failures are tried again.
    pub rules: RetryRules,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            backoff_factor: 2.0,
            jitter: 0.1,
            rules: RetryRules::default(),
        }
    }
}

/// When a failed send is tried again, and how often.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryPolicy(RetryConfig);

impl RetryPolicy {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] names the first setting that is out of range.
    pub fn new(config: RetryConfig) -> Result<Self, InvalidPolicy> {
        // Written so that a NaN fails too.
        if !(config.backoff_factor >= 1.0 && config.backoff_factor.is_finite()) {
            return Err(InvalidPolicy { setting: "backoff_factor", problem: "must be a number from 1 up" });
        }
        if !(0.0..=1.0).contains(&config.jitter) {
            return Err(InvalidPolicy { setting: "jitter", problem: "must be from 0 to 1" });
        }
        if config.max_delay < config.base_delay {
            return Err(InvalidPolicy { setting: "max_delay", problem: "must not be less than base_delay" });
        }
        Ok(Self(config))
    }

    /// The checked settings.
    pub fn config(&self) -> &RetryConfig {
        &self.0
    }

    /// The delays before the retries of one message. Different seeds spread the retries of different messages.
    pub fn delays(&self, seed: u64) -> Delays {
        Delays::new(self, seed)
    }

    /// As [`delays`](Self::delays), for a message that has a number of retries of its own.
    pub fn delays_of(&self, seed: u64, max_retries: Option<u32>) -> Delays {
        let mut config = self.0.clone();
        config.max_retries = max_retries.unwrap_or(config.max_retries);
        Delays::new(&Self(config), seed)
    }

    /// Whether a send that failed like this may be tried again, see [`RetryRules::classify`].
    pub fn classify(&self, reason: FailureReason, error_text: &str) -> Retry {
        self.0.rules.classify(reason, error_text)
    }
}

/// A setting that is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}")]
pub struct InvalidPolicy {
    setting: &'static str,
    problem: &'static str,
}

impl InvalidPolicy {
    /// The setting's name.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |change: &dyn Fn(&mut RetryConfig)| {
            let mut config = RetryConfig::default();
            change(&mut config);
            RetryPolicy::new(config).unwrap_err().setting()
        };
        for factor in [0.99, 0.0, -2.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(&|c| c.backoff_factor = factor), "backoff_factor");
        }
        for jitter in [-0.1, 1.1, f64::NAN] {
            assert_eq!(refused(&|c| c.jitter = jitter), "jitter");
        }
        assert_eq!(refused(&|c| c.max_delay = Duration::from_millis(99)), "max_delay");
        assert_eq!(RetryPolicy::new(RetryConfig::default()), Ok(RetryPolicy::default()));
    }
}
