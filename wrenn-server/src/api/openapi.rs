//! The description of the API: OpenAPI 3.1 as JSON and YAML, and a page that shows it.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::Modify;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::error::{CODES, ErrorBody};
use crate::app::App;

const ABOUT: &str = "MicroVM sandboxes over HTTP. Credentials are an access token (`Authorization: Bearer`) or an API key \
    (`X-API-Key`). Everything belongs to a team: what belongs to another is not found. Errors are \
    `{\"error\":{\"code\",\"message\"}}`; programs may rely on the code:\n\n";

#[derive(OpenApi)]
#[openapi(
    info(title = "Wrenn", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    security(("access_token" = []), ("api_key" = [])),
    components(schemas(ErrorBody)),
    modifiers(&Common),
)]
struct Document;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document.info.description = Some(format!("{ABOUT}{CODES}"));
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        components.add_security_scheme("access_token", SecurityScheme::Http(bearer.clone()));
        components.add_security_scheme("host_token", SecurityScheme::Http(bearer));
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        components.add_security_scheme("api_key", key);
    }
}

/// A router with nothing but what the description begins with.
pub(super) fn base() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
}

/// The description and its page, for all routes that it describes.
pub(super) fn routes(mut document: utoipa::openapi::OpenApi) -> Router<App> {
    every_operation_may_fail(&mut document);
    // Made once: neither changes.
    let json = document.to_json().expect("a description of strings and numbers is JSON");
    let yaml = document.to_yaml().expect("a description of strings and numbers is YAML");
    let page = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json"));
    Router::new()
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], json) }))
        .route("/openapi.yaml", get(|| async { ([(header::CONTENT_TYPE, "application/yaml")], yaml) }))
        .merge(page)
}

/// Errors have one body wherever they come from, so it is said once.
fn every_operation_may_fail(document: &mut utoipa::openapi::OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
            &mut item.head,
            &mut item.options,
        ];
        for operation in operations.into_iter().flatten() {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
            let error = ResponseBuilder::new()
                .description("What went wrong")
                .content("application/json", content)
                .build();
            operation.responses.responses.insert("default".to_owned(), RefOr::T(error));
        }
    }
}
