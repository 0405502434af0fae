"""The System Backup page: a web server of its own, and a client of the service's socket and nothing more.

settings      portal.yaml
serving       the recipe: listen, serve, stop
app           routes and middlewares put together
portal        `Portal`: what a page is given
gateway       calls and events of the socket, over few connections, for all browsers
access        who is there (`User`), by session or by the reverse proxy's header
sessions      who has logged in
login         the page to log in and out
oidc          logging in at an OpenID Connect provider
protection    what every request must have, and every answer gets: host, origin, CSRF, headers
rates         how often somebody may try
rendering     templates and their filters
translation   languages; locale/*.po
live          /events: what happens, sent to browsers
overview, settings_page, jobs, archives, restore, reset, drills: the families of pages

How to add a page
-----------------
1. A family is a module with `routes(portal: Portal) -> list[web.RouteDef]`; it is in FAMILIES of `app`.

       def routes(portal: Portal) -> list[web.RouteDef]:
           async def show(request: web.Request) -> web.StreamResponse:
               found = await portal.call(request, "job.get", id=request.match_info["id"])
               return portal.render(request, "jobs_show.html", job=found)

           async def cancel(request: web.Request) -> web.StreamResponse:
               await portal.call(request, "job.cancel", id=request.match_info["id"])
               return portal.redirect(request, "/jobs", notice=portal.text(request, N_("The job was cancelled.")))

           return [web.get("/jobs/{id}", show), web.post("/jobs/{id}/cancel", cancel)]

   Paths are without `base_path`; `app` puts it in front. Every page asks for a login by itself.
2. `portal.call` is the only way to the socket. It refuses what the user's role may not (`portal.may(request, method)`
   tells, in templates `may("job.cancel")`), and raises `ServiceError`. Let errors through: they become a page with
   code, message and hint, and a service that is away becomes a page that recovers by itself. Catch RemoteError only to
   show it beside what was typed (`parts.error_box(error)`).
3. A change is a POST that answers `portal.redirect` (303). Its form comes from `{% call parts.form("/jobs/backup") %}`,
   which brings the CSRF token and an idempotency key; `form = await portal.form(request)` gives the fields as text.
   `portal.begin` queues a job by that key, so that a double click is one job; a form that is refused for how things are
   now asks `portal.begun` first.
4. A template extends `base.html` (blocks `title`, `main`; write `{% extends "base.html" %}`, then
   `{% import "parts.html" as parts with context %}`). Links are `{{ url("/archives") }}`, with query
   `{{ url("/jobs", before=id) }}`. The macros of parts.html say what they do at their top.
   Filters: `n|bytes` `1.5 GB`, `n|number`, `seconds|duration`, `iso|moment` (a `<time>` in the viewer's zone; with
   `iso|moment(relative=true)` as "5 minutes ago"), `iso|day`.
5. Live: `{% call parts.live("jobs", on="job archive") %}...{% endcall %}` is fetched anew when an event happens whose
   type begins with one of these words (`progress` comes at most once a second). Only what differs is replaced, so that
   focus, what was typed and open `<details>` stay. Give repeated rows an `id`. The page must work without any of it.
6. Texts: `{{ _("Plain sentence with %(name)s.", name=x) }}`, `ngettext` for numbers; in Python
   `portal.text(request, N_("..."), name=x)`. `make translations` collects them into locale/zh_TW.po; translate there.
7. The Content-Security-Policy allows nothing inline: no `style=""`, no `<style>`, no `onclick`. For lengths use
   `<progress>`, `<meter>`, or attributes of SVG. Behaviour is a `data-` attribute that static/portal.js knows.
"""
