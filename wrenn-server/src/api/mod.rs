//! HTTP: the routes, what they have in common, and their description.

mod error;
pub(crate) mod extract;
mod layers;
mod openapi;
mod operations;
mod v1;
mod whole;

use axum::Router;

pub(crate) use self::error::{Code, Error};
pub(crate) use self::v1::{check_env, check_metadata, checked_account, idempotent, remove_snapshot};
use crate::app::App;
use crate::{e2b, web};

/// Everything that is served.
pub(crate) fn router(app: App) -> Router {
    let (routes, document) =
        openapi::base().merge(v1::routes()).merge(operations::routes()).split_for_parts();
    let routes = routes
        .merge(openapi::routes(document))
        .merge(web::routes())
        .merge(e2b::routes())
        .fallback(|| async { Code::NotFound.because("there is no such path") })
        .method_not_allowed_fallback(|| async {
            Code::MethodNotAllowed.because("the path exists, but not for this method")
        });
    layers::around(routes, &app).with_state(app)
}
