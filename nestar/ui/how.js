// Starts the panels of "How it works", each in a file of its own. Nothing here asks the server or touches the model.
const choice = nestingChoice();
const panelOf = (name) => element.querySelector(`[data-panel="${name}"]`);

dialsPanel(element.querySelector(".how-dials"), choice);
nestPanel(panelOf("nest"), choice);
factorsPanel(panelOf("factors"), choice);
turnsPanel(panelOf("turns"), choice);
flowPanel(panelOf("flow"));
orderPanel(panelOf("order"));
checksPanel(panelOf("checks"));
