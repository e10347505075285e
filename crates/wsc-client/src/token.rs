//! Where tokens come from.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc};

type BoxError = Box<dyn Error + Send + Sync>;
type TokenFuture = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;

/// Where the token of each attempt to connect comes from. Never shows one.
#[derive(Clone)]
pub(crate) enum TokenSource {
    None,
    Fixed(Arc<str>),
    Provider(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
}

impl TokenSource {
    pub(crate) fn provider<F, Fut>(provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        Self::Provider(Arc::new(move || Box::pin(provider())))
    }

    pub(crate) async fn token(&self) -> Result<Option<String>, BoxError> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(token) => Ok(Some(token.as_ref().to_owned())),
            Self::Provider(provider) => provider().await.map(Some),
        }
    }

    /// Whether asking again may give another token.
    pub(crate) fn can_renew(&self) -> bool {
        matches!(self, Self::Provider(_))
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Fixed(_) => "Fixed",
            Self::Provider(_) => "Provider",
        })
    }
}
