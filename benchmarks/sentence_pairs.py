"""Pairs of sentences that speak of the same thing in part, written for :mod:`benchmarks.sentences`.

In each pair some words are shared or have the same meaning. Other words have nothing to do with the other sentence. So
an explanation of the similarity has something to find.
"""

from __future__ import annotations

PAIRS: tuple[tuple[str, str], ...] = (
    (
        "The old fisherman repaired his wooden boat before the storm.",
        "A storm is coming, so the boats stay in the harbour.",
    ),
    (
        "My sister plays the violin in a small orchestra on Sundays.",
        "Two violins and a cello were missing at the rehearsal.",
    ),
    (
        "The bakery on the corner sells fresh bread from six in the morning.",
        "We bought a warm loaf of bread for breakfast.",
    ),
    (
        "Nobody in the village had seen the wolf, but everybody was afraid.",
        "Wolves were heard in the forest last night.",
    ),
    (
        "The doctor told him to drink more water and to sleep longer.",
        "Sleep helps patients to recover after an operation.",
    ),
    ("Our train to Vienna was late because of snow on the tracks.", "Heavy snow stopped the railway for three hours."),
    (
        "She painted the kitchen yellow while the children were at school.",
        "The walls of our kitchen need a new colour.",
    ),
    ("The museum shows drawings that the artist made in prison.", "An exhibition of early drawings opens on Friday."),
    ("He lost his passport somewhere between the hotel and the airport.", "Please show your passport at the airport."),
    ("The farmer sold three cows and bought a used tractor.", "Tractors have replaced horses on most farms."),
    ("After the match the players thanked the crowd in the rain.", "Thousands of fans watched the football game."),
    ("The teacher explained fractions with slices of an apple pie.", "Pupils often find it hard to learn fractions."),
    ("A young engineer designed a bridge that folds like paper.", "The bridge across the river was built in one year."),
    ("They planted tomatoes and beans behind the garage.", "The tomatoes in our garden are still green."),
    ("The price of coffee rose again after the dry summer in Brazil.", "Coffee became more expensive this year."),
    (
        "The judge read the letter twice and then closed the court.",
        "The lawyer waited outside the court for the judge.",
    ),
    ("Our neighbour's dog barks whenever the postman comes.", "The postman was bitten by a dog on Monday."),
    ("The satellite takes pictures of the same forest every week.", "Satellites show how quickly forests disappear."),
    ("She learned Spanish from songs before she went to Chile.", "He speaks Spanish with his grandmother."),
    ("The battery of my phone does not last a whole day any more.", "A new battery costs less than a new telephone."),
    ("In winter the lake freezes and people skate to the island.", "The ice on the lake is not safe in March."),
    ("The nurse wrote the temperature of each patient on a card.", "The patient had a high fever during the night."),
    (
        "A thief stole two bicycles from the cellar of our house.",
        "The police found my stolen bicycle near the station.",
    ),
    ("The pilot turned the plane around when an engine failed.", "An aircraft landed safely with only one engine."),
    ("We cook the soup slowly with carrots, onions and a little salt.", "Add the onions first when you make soup."),
    (
        "The company will close its factory and move to another country.",
        "Hundreds of workers lost their jobs in the factory.",
    ),
    ("The moon was so bright that we walked without a lamp.", "A full moon lit the path through the fields."),
    ("He wrote a long letter to the bank about the lost money.", "The bank has not answered my letter yet."),
    ("The children built a castle of sand and a wave washed it away.", "Waves are high at the beach today."),
    ("The library lends books, films and even musical instruments.", "I returned the books to the library yesterday."),
    (
        "A warm wind melted the snow on the southern side of the mountain.",
        "Climbers reached the top of the mountain at noon.",
    ),
    ("The new law forbids smoking in parks and at bus stops.", "Smoking is not allowed in this restaurant."),
    ("Scientists found water under the surface of a distant moon.", "Researchers discovered ice on another planet."),
    ("The tailor shortened the sleeves of my grandfather's coat.", "This coat is too long for me."),
    ("She keeps bees on the roof of a hotel in the middle of the city.", "Bees make less honey in a rainy spring."),
    ("The clock in the tower has been wrong since the war.", "The tower of the church was repaired last summer."),
    ("He drank a glass of cold milk and went back to his computer.", "Children should drink milk every day."),
    ("The programmer found the error in the last line of the file.", "There is a bug in this computer program."),
    (
        "Our flight was cancelled, so we took the night bus to Porto.",
        "The airline cancelled all flights because of fog.",
    ),
    ("The queen opened the new hospital in the north of the capital.", "A modern hospital was opened in our city."),
    ("The cat slept on the piano while her owner was practising.", "Our cat likes to sleep in the sun."),
    ("Two students invented a lamp that needs no electricity.", "The village has had electricity since last year."),
    ("The shop gives the money back if the shoes do not fit.", "I would like to exchange these shoes."),
    (
        "The river rose overnight and flooded the cellars of the old town.",
        "The flood damaged many houses near the river.",
    ),
    ("He was elected mayor although nobody knew his programme.", "The election of the mayor takes place in May."),
    ("The tea is too hot, so let it stand for a few minutes.", "A cup of hot tea is good for a sore throat."),
    ("A small earthquake broke windows but hurt nobody.", "The earthquake destroyed the road to the coast."),
    ("Her first novel tells the story of a lighthouse keeper.", "The author reads from his new book tonight."),
    ("The carpenter made a table of oak for the new office.", "We need a bigger table for our guests."),
    ("The birds leave in September and return with the first rain.", "Storks fly south before winter begins."),
    ("My brother repaired the radio with a spoon and some wire.", "The radio has been broken since Tuesday."),
    ("The singer forgot the words and the audience sang for her.", "The concert began with an old song."),
    ("Drivers must stop here when the school bus has its lights on.", "A car did not stop at the red light."),
    ("The wine tastes of cherries and was made by monks.", "Red wine should not be served too cold."),
    (
        "She teaches mathematics at the university and swims every morning.",
        "The professor of mathematics wrote a new textbook.",
    ),
    ("The archive burned down and with it the maps of the colony.", "An old map shows where the treasure is buried."),
    ("They married in a small chapel and danced until sunrise.", "The wedding was celebrated with music and dance."),
    ("The vaccine protects most people for about ten years.", "Children get this vaccine in their first year."),
    ("The elephant in the zoo is older than its keeper.", "Elephants live in groups that are led by a female."),
    (
        "Investors sold their shares when the bank published its losses.",
        "The stock market fell after bad news from banks.",
    ),
    (
        "He locked the door, but he left the window of the bathroom open.",
        "Somebody broke into the house through a window.",
    ),
    ("The desert is hot by day and very cold at night.", "It seldom rains in the desert."),
    ("The robot sorts plastic bottles faster than four people.", "Machines can separate plastic from other waste."),
    ("A volunteer reads the newspaper to blind people every Thursday.", "The newspaper reported about the accident."),
)
