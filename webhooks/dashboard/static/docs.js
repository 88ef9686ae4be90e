"use strict";
SwaggerUIBundle({
  url: document.getElementById("swagger").dataset.description,
  dom_id: "#swagger",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
