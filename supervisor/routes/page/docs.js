// Shows the document. A browser sends no token with an address, so where the document needs one this page asks for it.
// The token stays in this page's memory: it goes with what is tried out here, and is gone when the page is.

const form = document.getElementById("token");

async function show(token) {
  const answer = await fetch("openapi.json", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  form.hidden = answer.ok;
  if (!answer.ok) {
    form.querySelector("output").value = token ? (await answer.json()).detail : "";
    return;
  }
  const ui = SwaggerUIBundle({
    dom_id: "#api",
    spec: await answer.json(),
    deepLinking: true,
    onComplete: () => token && ui.preauthorizeApiKey("bearer", token),
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(form.elements.text.value.trim());
});

show("");
