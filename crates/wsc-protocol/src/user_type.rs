//! What kind of user a connection belongs to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What kind of user a connection belongs to; default [`UserType::Visitor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
#[repr(u8)]
pub enum UserType {
    #[default]
    Visitor,
    Customer,
    Agent,
    Admin,
    Bot,
    Vip,
    System,
    Observer,
}

impl UserType {
    /// Every user type, in declaration order: `ALL[t as usize] == t`.
    pub const ALL: [Self; 8] =
        [Self::Visitor, Self::Customer, Self::Agent, Self::Admin, Self::Bot, Self::Vip, Self::System, Self::Observer];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Customer => "customer",
            Self::Agent => "agent",
            Self::Admin => "admin",
            Self::Bot => "bot",
            Self::Vip => "vip",
            Self::System => "system",
            Self::Observer => "observer",
        }
    }
}

impl fmt::Display for UserType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UserType {
    type Err = UnknownUserType;

    fn from_str(text: &str) -> Result<Self, UnknownUserType> {
        Self::ALL.into_iter().find(|t| t.as_str() == text).ok_or(UnknownUserType)
    }
}

/// The text names no [`UserType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is none of visitor, customer, agent, admin, bot, vip, system, observer")]
pub struct UnknownUserType;
